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
    cargo nextest run --profile full {{arguments}}

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

# The conformance suite on kernels 5.10 to 7.x and QEMU 7.2 to 11.x: a table (an hour without KVM)
matrix *arguments:
    ci/matrix {{arguments}}

# Show that the soak finds QEMU's bug reported-luns-changed (builds QEMU; half an hour without KVM)
affected-qemu *arguments:
    ci/affected-qemu {{arguments}}

# Build and test agent-plugin with ttrpc 0.10
ttrpc:
    ci/ttrpc-0.10

# Measure hot-plug and hot-unplug beside the least time that they could take
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

# Write the generated documentation again: man pages, tables of exit statuses, JSON Schema
docs:
    ECR_RUNTIME_WRITE_DOCS=1 cargo test --quiet -p host-trigger --test man_page --test documentation

# Draw the pictures of the documentation again, and record the session (boots a VM)
pictures *arguments:
    ci/pictures {{arguments}}
