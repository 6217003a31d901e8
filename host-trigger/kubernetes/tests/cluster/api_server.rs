//! etcd and kube-apiserver on loopback, each test its own. Both end with the value.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use kube::{Client, Config};
use serde_json::json;

use crate::wait::until;

/// The users and their groups, as service accounts are called. The token is the first word.
const TOKENS: &str = r#"admin-token,admin,1,"system:masters"
controller-token,system:serviceaccount:block-volume:block-volume-controller,2,"system:serviceaccounts,system:authenticated"
node-token,system:serviceaccount:block-volume:block-volume-node,3,"system:serviceaccounts,system:authenticated"
user-token,user,4,"system:authenticated"
"#;

/// A user of the API server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum User {
    Admin,
    Controller,
    Node,
    /// A user without any right but those that a test grants.
    Plain,
}

impl User {
    fn token(self) -> &'static str {
        match self {
            Self::Admin => "admin-token",
            Self::Controller => "controller-token",
            Self::Node => "node-token",
            Self::Plain => "user-token",
        }
    }
}

/// A running API server.
pub(crate) struct ApiServer {
    directory: tempfile::TempDir,
    programs: PathBuf,
    etcd_port: u16,
    port: u16,
    etcd: Child,
    server: Option<Child>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        end(&mut self.etcd);
        if std::thread::panicking() {
            let log = fs::read(self.directory.path().join("kube-apiserver.log"));
            let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(20)..];
            eprintln!("--- kube-apiserver\n{}", last.join("\n"));
        }
    }
}

/// Kills a child and waits for it.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl ApiServer {
    /// Starts both, and waits until they are ready.
    pub(crate) async fn start() -> Self {
        let programs = programs();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("tokens.csv"), TOKENS).unwrap();
        let key = Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(path.join("sa.key"))
            .arg("2048")
            .stderr(Stdio::null())
            .status();
        assert!(key.unwrap().success(), "openssl makes no key");
        let [etcd_port, peer_port, port] = free_ports();
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let mut etcd = Command::new(programs.join("etcd"));
        etcd.arg("--data-dir").arg(path.join("etcd")).arg("--unsafe-no-fsync").args([
            format!("--listen-client-urls={etcd_url}"),
            format!("--advertise-client-urls={etcd_url}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
        ]);
        let etcd = started(etcd, &path.join("etcd.log"));
        let mut this = Self { directory, programs, etcd_port, port, etcd, server: None };
        this.go_on().await;
        this
    }

    /// Starts the API server that was stopped.
    pub(crate) async fn go_on(&mut self) {
        let path = self.directory.path();
        let mut server = Command::new(self.programs.join("kube-apiserver"));
        let with = |name: &str, file: &str| format!("--{name}={}", path.join(file).display());
        server.args([
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            with("cert-dir", "certificates"),
            with("service-account-key-file", "sa.key"),
            with("service-account-signing-key-file", "sa.key"),
            with("token-auth-file", "tokens.csv"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // There is no controller that makes the accounts of namespaces. There are no quotas,
            // and after a start on a busy machine their evaluation is late.
            "--disable-admission-plugins=ServiceAccount,ResourceQuota".to_owned(),
            "--allow-privileged".to_owned(),
        ]);
        self.server = Some(started(server, &path.join("kube-apiserver.log")));
        let client = self.client(User::Admin);
        let ready = || async {
            let request = hyper::Request::get("/readyz").body(Vec::new()).unwrap();
            client.request_text(request).await.is_ok_and(|text| text == "ok")
        };
        until("the API server is ready", ready).await;
    }

    /// Stops the API server. What it stored remains.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            end(&mut server);
        }
    }

    /// The process IDs of etcd and of the API server, which runs.
    pub(crate) fn processes(&self) -> [u32; 2] {
        [self.etcd.id(), self.server.as_ref().unwrap().id()]
    }

    /// A client for `user`.
    pub(crate) fn client(&self, user: User) -> Client {
        let mut config = Config::new(self.url().parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(user.token().to_owned().into());
        Client::try_from(config).unwrap()
    }

    /// A file by which another program is `user`.
    pub(crate) fn kubeconfig(&self, user: User) -> PathBuf {
        let cluster = json!({ "server": self.url(), "insecure-skip-tls-verify": true });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "test", "user": { "token": user.token() } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        });
        let path = self.directory.path().join(format!("{}.json", user.token()));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Runs kubectl as the administrator; returns its output.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        // It would not know a resource that was defined after it had asked.
        let cache = self.directory.path().join("kubectl");
        let _ = fs::remove_dir_all(&cache);
        let ran = Command::new(self.programs.join("kubectl"))
            .args(["--insecure-skip-tls-verify", "--token=admin-token"])
            .arg(format!("--server={}", self.url()))
            .arg(format!("--cache-dir={}", cache.display()))
            .args(arguments)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
            .output()
            .unwrap();
        let (out, err) =
            (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "kubectl {arguments:?}: {out}{err}");
        out.into_owned()
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

/// Where `ci/kubernetes --build` puts the programs.
pub(crate) fn programs() -> PathBuf {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let cache = std::env::var_os("VM_HARNESS_CACHE").map(PathBuf::from);
    let programs = cache.unwrap_or_else(|| tree.join("target/cache")).join("kubernetes");
    assert!(
        programs.join("kube-apiserver").exists(),
        "{} has no kube-apiserver: run ci/kubernetes --build",
        programs.display()
    );
    programs
}

fn started(mut command: Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let spawned = command.spawn();
    spawned.unwrap_or_else(|e| panic!("{:?} does not start: {e}", command.get_program()))
}

/// Ports that nothing listens on now.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
