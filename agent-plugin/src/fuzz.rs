//! Access to private parsers for the fuzz targets in `fuzz/`. The feature `fuzz` is off in every
//! agent.

use protobuf::Message as _;
use serde_json::Value;

use crate::{
    api::block_volume as wire,
    block::DeviceNumber,
    cgroup,
    file_system::{self, Kind},
    holders, ids,
    procfs::mountinfo::MountLine,
    service::{policy, reply, request, requested, rpc::Rpc},
    text,
    volume::Failed,
};

/// A request.
#[derive(Debug)]
#[expect(missing_docs, reason = "the API documents them")]
pub enum Request {
    Probe(wire::ProbeRequest),
    Attach(wire::AttachRequest),
    Detach(wire::DetachRequest),
    Inspect(wire::InspectRequest),
    Resize(wire::ResizeRequest),
    Plug(wire::AttachRequest),
}

/// Decodes and checks a request as the service does.
///
/// # Errors
/// The failure that the caller gets.
///
/// # Panics
/// The service cannot decode what the generated code encodes.
pub fn check(request: &Request) -> Result<Value, wire::Failure> {
    let (rpc, bytes) = match request {
        Request::Probe(request) => (Rpc::Probe, request.write_to_bytes()),
        Request::Attach(request) => (Rpc::Attach, request.write_to_bytes()),
        Request::Detach(request) => (Rpc::Detach, request.write_to_bytes()),
        Request::Inspect(request) => (Rpc::Inspect, request.write_to_bytes()),
        Request::Resize(request) => (Rpc::Resize, request.write_to_bytes()),
        Request::Plug(request) => {
            let step = Some(wire::plug_request::Step::Start(request.clone()));
            (Rpc::Plug, wire::PlugRequest { step, ..Default::default() }.write_to_bytes())
        }
    };
    let bytes = bytes.expect("a message can be encoded");
    let bytes = match requested::PlugStep::decode(&bytes) {
        Ok(requested::PlugStep::Start(request)) if rpc == Rpc::Plug => request,
        _ => &bytes,
    };
    let request = requested::Request::decode(rpc, bytes).expect("the format is the same");
    match request::check(rpc, &request) {
        Ok(checked) => Ok(policy::question(rpc, &checked)),
        Err(error) => {
            let failure = reply::failure(&Failed::from(error));
            Err(wire::Failure {
                reason: failure.reason.into(),
                message: failure.message,
                serial: failure.serial,
                undone: failure.undone,
                ..Default::default()
            })
        }
    }
}

/// Whether a message of any bytes can be decoded.
pub fn is_request(bytes: &[u8]) -> bool {
    let is_step = requested::PlugStep::decode(bytes).is_ok();
    requested::Request::decode(Rpc::Detach, bytes).is_ok() || is_step
}

/// Parses a line of mountinfo: the device number, the mount point, the file system's type, the
/// source.
pub fn mount(line: &[u8]) -> Option<(DeviceNumber, [Vec<u8>; 3])> {
    let mount = MountLine::parse(line)?;
    Some((mount.number, [mount.point(), mount.file_system.to_owned(), mount.source()]))
}

/// The paths of swap devices.
pub fn swap_devices(text: &[u8]) -> Vec<Vec<u8>> {
    holders::swap_devices(text).collect()
}

/// Whether a `devices.list` allows a disk to be read.
pub fn is_listed(list: &[u8]) -> bool {
    cgroup::is_listed(list, DeviceNumber { major: 8, minor: 16 })
}

/// The guest's id of a container's user, by its `uid_map`.
pub fn id_outside(map: &[u8], id: u32) -> Option<u32> {
    ids::outside(map, id)
}

/// A name of a container as a message shows it.
pub fn shown(name: &[u8]) -> String {
    text::shown(&text::readable(name, 1000))
}

/// As what a disk that begins with these bytes would be mounted.
///
/// # Errors
/// Why it would not be.
///
/// # Panics
/// The requested type is none of the API's.
pub fn identified(bytes: &[u8], requested: Option<&str>) -> Result<&'static str, String> {
    let requested = requested.map(|name| Kind::named(name).expect("a type of the API"));
    let kind = file_system::decide("sda", bytes, requested);
    kind.map(Kind::name).map_err(|error| error.message())
}

/// Parameters of a file system, with their values.
pub type Parameters = Vec<(String, Option<String>)>;

/// What mount options become: attributes of the mount, and parameters of the file system.
///
/// # Panics
/// The type is none of the API's.
pub fn mount_options(kind: &str, options: &[String], read_only: bool) -> Option<(u64, Parameters)> {
    let kind = Kind::named(kind).expect("a type of the API");
    let checked = file_system::Options::new(kind, options, read_only).ok()?;
    Some((checked.attributes, checked.parameters))
}

/// What a record of the kernel's log says about the disk `sda`.
pub fn logged(record: &[u8]) -> Option<String> {
    file_system::line_about("sda", record)
}

/// The file of a line in `/proc/PID/maps`.
pub fn mapping(line: &[u8]) -> Option<(DeviceNumber, Vec<u8>)> {
    holders::mapping(line)
}

/// Whether an overlay with these options is made of files below `point`.
pub fn is_layer(options: &[u8], point: &[u8]) -> bool {
    holders::is_layer(options, point)
}
