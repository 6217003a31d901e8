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

# Format, lints, unit, documentation and end-to-end tests
test *arguments:
    ci/test {{arguments}}

# End-to-end tests only, of a tree that is built
e2e *arguments:
    cargo nextest run -p vm-harness {{arguments}}

# The ten slowest tests of the last run
slowest *arguments:
    ci/slowest {{arguments}}

# The level full, of a tree that is built: many volumes, many callers, the crash table, a short soak (some ten minutes)
full *arguments:
    ci/setup --full
    cargo nextest run --profile full {{arguments}}

# Every step of plug and unplug, what can come in the way, the ways out: the table alone
crash *arguments:
    target/release/vm-harness crash {{arguments}}

# Check that an agent plugs volumes as it should: the reference agent, or yours (--agent PATH)
conformance *arguments:
    target/release/vm-harness conformance {{arguments}}

# Plug and unplug a volume a thousand times beside one that is under load
soak *arguments:
    target/release/vm-harness soak {{arguments}}

# Run fuzz targets: all, or those named, ten seconds each or `--seconds N`
fuzz *arguments:
    ci/fuzz {{arguments}}

# All fuzz targets for some seconds each
fuzz-smoke:
    ci/fuzz --seconds 5

# The conformance suite over kernels 5.10 to 7.x and QEMU 7.2 to 11.x of Debian's suites, as a table (an hour without KVM)
matrix *arguments:
    ci/matrix {{arguments}}

# Build a QEMU with the bug reported-luns-changed, and see it fail where the mended one passes (half an hour without KVM)
affected-qemu *arguments:
    ci/affected-qemu {{arguments}}

# Build and test agent-plugin against the other ttrpc
ttrpc:
    ci/ttrpc-0.10

# Measure hot-plug and hot-unplug beside the least that they could take
bench *arguments:
    ci/bench {{arguments}}

# Boot a sandbox and hold it
boot *arguments:
    target/release/vm-harness boot {{arguments}}

# Format the code
format:
    cargo fmt --all

# Write the man pages anew
man:
    ECR_RUNTIME_WRITE_MAN=1 cargo test --quiet -p host-trigger --test man_page
