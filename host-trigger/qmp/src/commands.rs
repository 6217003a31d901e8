//! The commands that this client can send. See the
//! [QMP reference](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html).

use qapi::{
    ExecuteError,
    futures::{QapiService, QmpStreamTokio},
};
use serde::Serialize;
use serde_json::Value;

use crate::wire::CommandWriter;

/// qapi's side of the connection.
pub(crate) type Service = QapiService<QmpStreamTokio<CommandWriter>>;

/// qapi needs a type for each command, with the command's name as a constant. The arguments and the
/// reply stay JSON.
macro_rules! commands {
    ($($kind:ident = $name:literal,)*) => {
        $(
            #[derive(Debug, Serialize)]
            #[serde(transparent)]
            struct $kind(Value);
            impl qapi::Command for $kind {
                const NAME: &'static str = $name;
                const ALLOW_OOB: bool = false;
                type Ok = Value;
            }
            impl qapi::qmp::QmpCommand for $kind {}
        )*

        /// Sends the command of this name; `None` if it is not listed below.
        pub(crate) async fn send(
            service: &Service,
            command: &str,
            arguments: Value,
        ) -> Option<Result<Value, ExecuteError>> {
            match command {
                $($name => Some(service.execute($kind(arguments)).await),)*
                _ => None,
            }
        }
    };
}

commands! {
    AddFd = "add-fd",
    BlockResize = "block_resize",
    BlockSetIoThrottle = "block_set_io_throttle",
    BlockdevAdd = "blockdev-add",
    BlockdevBackup = "blockdev-backup",
    BlockdevDel = "blockdev-del",
    BlockdevMirror = "blockdev-mirror",
    BlockdevSnapshot = "blockdev-snapshot",
    BlockExportAdd = "block-export-add",
    BlockExportDel = "block-export-del",
    BlockJobCancel = "block-job-cancel",
    BlockJobComplete = "block-job-complete",
    ChardevAdd = "chardev-add",
    Cont = "cont",
    DeviceAdd = "device_add",
    DeviceDel = "device_del",
    HumanMonitorCommand = "human-monitor-command",
    Migrate = "migrate",
    MigrateSetCapabilities = "migrate-set-capabilities",
    NbdServerStart = "nbd-server-start",
    NbdServerStop = "nbd-server-stop",
    ObjectAdd = "object-add",
    ObjectDel = "object-del",
    QomGet = "qom-get",
    QomList = "qom-list",
    QomSet = "qom-set",
    QueryBlock = "query-block",
    QueryBlockExports = "query-block-exports",
    QueryBlockJobs = "query-block-jobs",
    QueryBlockstats = "query-blockstats",
    QueryFdsets = "query-fdsets",
    QueryMigrate = "query-migrate",
    QueryNamedBlockNodes = "query-named-block-nodes",
    QueryPci = "query-pci",
    QueryStatus = "query-status",
    QueryVersion = "query-version",
    Quit = "quit",
    RemoveFd = "remove-fd",
    Stop = "stop",
    SystemPowerdown = "system_powerdown",
}
