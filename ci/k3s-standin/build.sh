#!/bin/sh
# Builds the stand-in for K3s into OUTDIR, under the names of K3s's own release
# assets: k3s, k3s-airgap-images-amd64.tar.zst and sha256sum-amd64.txt.
# Does nothing when OUTDIR already holds what this folder builds.
#
#   ci/k3s-standin/build.sh OUTDIR
set -eu

[ $# -eq 1 ] || { echo "usage: build.sh OUTDIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"

say() { echo "k3s stand-in: $*" >&2; }

command -v go >/dev/null || { say "Go is needed to build it: https://go.dev/doc/install"; exit 1; }

# The inputs: every file that go reads, and this script, but not the tests.
key=$(find . -type f \( -name '*.go' -o -name 'go.*' -o -name '*.yaml' -o -name build.sh \) ! -name '*_test.go' \
    | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
assets="k3s k3s-airgap-images-amd64.tar.zst"
if [ "$(cat "$out/.inputs" 2>/dev/null)" = "$key" ] && (cd "$out" && sha256sum --quiet --check sha256sum-amd64.txt >&2); then
    say "up to date in $out"
    exit 0
fi

export CGO_ENABLED=0 GOOS=linux GOARCH=amd64
kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
version="$kubernetes+orch-standin"
minor=${kubernetes#v1.}
minor=${minor%%.*}
stamp="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamp="$stamp -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
    stamp="$stamp -X $package.gitTreeState=clean"
done

work=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

build() {
    say "building $1 (minutes when nothing is cached, seconds later)"
    nice -n 10 go build -trimpath -buildvcs=false -ldflags "$stamp" -o "$work/$1" "$2"
}
build k3s .
build coredns ./cmd/coredns
build pause ./cmd/pause
(cd metrics-server && build metrics-server .)

say "writing the images"
nice -n 10 go run -trimpath -buildvcs=false ./tools/airgap "$work/k3s-airgap-images-amd64.tar.zst" \
    orch.dev/k3s-standin/pause:1="$work/pause" \
    orch.dev/k3s-standin/coredns:1.13.1="$work/coredns" \
    orch.dev/k3s-standin/metrics-server:0.7.2="$work/metrics-server"

# shellcheck disable=SC2086 # a list of names
(cd "$work" && sha256sum $assets >sha256sum-amd64.txt)
echo "$key" >"$work/.inputs"
rm -f "$out/.inputs"
for asset in $assets sha256sum-amd64.txt .inputs; do
    mv -f "$work/$asset" "$out/$asset"
done
say "$version is in $out"
