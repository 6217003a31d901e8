//! An image without a registry: one layer with busybox, in an archive of the
//! [OCI image layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md).

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOCK: usize = 512;

/// An image whose containers sleep.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    busybox: Vec<u8>,
}

impl Image {
    /// Describes the image `name`, such as `localhost/harness:app`, with this statically linked
    /// program in it.
    pub fn new(name: &str, busybox: Vec<u8>) -> Self {
        Self { name: name.to_owned(), busybox }
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the archive, for `ctr images import`.
    pub fn archive(&self) -> Vec<u8> {
        let layer = Tar::default().directory("bin").file("bin/busybox", &self.busybox).end();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": { "Entrypoint": ["/bin/busybox", "sleep", "1000000000"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut described = descriptor(MANIFEST, &manifest);
        described["annotations"] = json!({ "io.containerd.image.name": self.name });
        let index = json!({ "schemaVersion": 2, "manifests": [described] }).to_string();
        let mut archive = Tar::default()
            .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", index.as_bytes())
            .directory("blobs")
            .directory("blobs/sha256");
        for blob in [&layer, &config, &manifest] {
            archive = archive.file(&format!("blobs/{}", digest(blob).replace(':', "/")), blob);
        }
        archive.end()
    }
}

fn digest(blob: &[u8]) -> String {
    let digits: String = Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
}

/// An archive in the format [ustar](https://man7.org/linux/man-pages/man5/tar.5.html).
#[derive(Debug, Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn directory(self, name: &str) -> Self {
        self.entry(&format!("{name}/"), b'5', &[])
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, b'0', content)
    }

    fn entry(mut self, name: &str, kind: u8, content: &[u8]) -> Self {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, b"0000755\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, b"00000000000\0");
        // The checksum is that of the header with blanks in its place.
        put(148, b"        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Command};

    use super::*;

    #[test]
    fn tar_reads_the_archive_and_the_layer_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&Image::new("localhost/a:b", vec![7; 1000]).archive()).unwrap();
        let unpack = |archive: &std::path::Path| {
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(directory.path()).arg("-xf").arg(archive);
            assert!(tar.status().unwrap().success());
        };
        unpack(file.path());
        let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
        let json = |name: &str| serde_json::from_slice::<Value>(&read(name)).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            format!("blobs/{}", digest.replace(':', "/"))
        };
        let manifest = json(&blob(&json("index.json")["manifests"][0]));
        let layer = &manifest["layers"][0];
        assert_eq!(json(&blob(&manifest["config"]))["rootfs"]["diff_ids"][0], layer["digest"]);
        assert_eq!(layer["size"], read(&blob(layer)).len());
        unpack(&directory.path().join(blob(layer)));
        assert_eq!(read("bin/busybox"), [7; 1000]);
    }
}
