# List the recipes
default:
    @just --list --unsorted

# Install and fetch what is needed (root, apt, cargo)
setup:
    ci/setup --test

# Build the host's binaries and the guest's image
build:
    ci/build

# Boot a VM and hot-plug two volumes into a running container
demo:
    ci/demo

# Everything that must pass before a change lands: format, lints, all tests
test *arguments:
    ci/test {{arguments}}

# Only the end-to-end tests (needs `just build`)
e2e *arguments:
    cargo nextest run -p vm-harness {{arguments}}

# The ten slowest tests of the last run
slowest *arguments:
    ci/slowest {{arguments}}

# The level full: many volumes, many callers, the crash table (ten minutes; needs `just build`)
full *arguments:
    ci/setup --full
    ci/kubernetes --build
    cargo nextest run --profile full {{arguments}}

# Boot a Debian node as a VM, install the package, and plug volumes into its pods; --kata DIRECTORY:
# into those of a release of Kata (needs `just build`)
node *arguments:
    ci/node {{arguments}}

# The controller and the node agent of Kubernetes against a real API server (builds it, once)
kubernetes *arguments:
    ci/kubernetes {{arguments}}

# The crash table: each step of plug and unplug, disturbances, and the remedies
crash *arguments:
    target/release/vm-harness crash {{arguments}}

# Check that an agent attaches and detaches volumes correctly: the reference agent, or --agent PATH
conformance *arguments:
    target/release/vm-harness conformance {{arguments}}

# Hot-plug and hot-unplug a volume a thousand times beside a volume under load
soak *arguments:
    target/release/vm-harness soak {{arguments}}

# Run fuzz targets: all, or the named ones, ten seconds each or `--seconds N`
fuzz *arguments:
    ci/fuzz {{arguments}}

# All fuzz targets for five seconds each
fuzz-smoke:
    ci/fuzz --seconds 5

# The conformance suite on kernels 5.10 to 7.x, QEMU 7.2 to 11.x and other machines (an hour)
matrix *arguments:
    ci/matrix {{arguments}}

# Show that the soak finds QEMU's bug reported-luns-changed (builds QEMU; half an hour without KVM)
affected-qemu *arguments:
    ci/affected-qemu {{arguments}}

# Build and test agent-plugin with ttrpc 0.10
ttrpc:
    ci/ttrpc-0.10

# Build agent-plugin for musl, and run its unit tests there
musl *arguments:
    ci/musl {{arguments}}

# Compile agent-plugin with the lowest versions that it names, and with those of Kata 4.1
versions:
    ci/versions

# Package the crates that can be published, and build with the packages (uploads nothing)
publish:
    ci/publish

# Make the Debian package in target/debian; --twice: reproducibly; --test: install, use, purge it
package *arguments:
    ci/package {{arguments}}

# Install the host's programs with cargo below a temporary directory, and enable a node with them
cargo-install:
    ci/install

# Compare the public API of these crates with that of their release (needs the whole history)
semver:
    ci/semver

# Measure hot-plug and hot-unplug beside the least time that they could take, and beside virsh
bench *arguments:
    ci/bench {{arguments}}

# Boot a sandbox and hold it
boot *arguments:
    target/release/vm-harness boot {{arguments}}

# Format the code
format:
    cargo fmt --all

# List comments and Markdown lines that are wider than 100 columns
line-length *files:
    ci/line-length {{files}}

# List imports against the direction of the folders
layers *arguments:
    ci/layers {{arguments}}

# Write what is generated again: man pages, tables of exit statuses, JSON Schema, the resource
docs:
    ECR_RUNTIME_WRITE_DOCS=1 cargo test --quiet -p host-trigger --test man_page --test documentation
    ECR_RUNTIME_WRITE_DOCS=1 cargo test --quiet -p block-volume-kubernetes --test definition

# Draw the pictures of the documentation again, and record the session (boots a VM)
pictures *arguments:
    ci/pictures {{arguments}}
