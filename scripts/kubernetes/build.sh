#!/usr/bin/env bash
# Builds the parts of a real Kubernetes 1.20 for the tests, from Debian's source package and with Debian's Go alone:
# nothing is installed, and nothing but Debian's archive is asked. Takes some ten minutes, 4 GB while it works, 460 MB
# in the end; where the binaries are there already it does nothing.
#
#   scripts/kubernetes/build.sh [DIR]     default: ~/.cache/modelkit-tests/kubernetes; the binaries are in DIR/bin
set -euo pipefail

dir=$(realpath -m "${1:-$HOME/.cache/modelkit-tests/kubernetes}")
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy)
version=1.20.2

has_all() {
    local program
    for program in "${programs[@]}" kubectl etcd; do [[ -x $dir/bin/$program ]] || return 1; done
}
if has_all; then
    echo "Kubernetes $version is there: $dir/bin"
    exit
fi

# One build at a time: a second one waits, and finds the binaries of the first.
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if has_all; then exit; fi
work=$dir/work
rm -rf "$work"
mkdir -p "$work"/{apt/lists/partial,apt/cache/archives/partial,debs,source,root,home,gopath/src/k8s.io} "$dir/bin"
cd "$work"

# This machine's own Debian sources with source packages switched on, whatever form they are in; apt's state stays here.
cat /etc/apt/sources.list.d/debian.sources 2>/dev/null \
    | sed 's/^Types: .*/Types: deb deb-src/' >apt/debian.sources || true
grep -h '^deb ' /etc/apt/sources.list 2>/dev/null | sed 'p;s/^deb /deb-src /' >apt/debian.list || true
mkdir apt/parts && find apt -maxdepth 1 -name 'debian.*' -size +0 -exec cp {} apt/parts/ \;
apt=(-o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/apt/parts" -o Dir::State::Lists="$work/apt/lists"
    -o Dir::Cache="$work/apt/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update -qq
(cd debs && apt-get "${apt[@]}" download -qq golang-1.19-go golang-1.19-src etcd-server kubernetes-client \
    golang-github-modern-go-reflect2-dev)
for deb in debs/*.deb; do dpkg -x "$deb" root; done
(cd source && apt-get "${apt[@]}" source -qq --download-only kubernetes && tar xf kubernetes_*.orig.tar.gz)
mv "source/kubernetes-$version" gopath/src/k8s.io/kubernetes
kubernetes=$work/gopath/src/k8s.io/kubernetes

# The reflect2 that Kubernetes carries crashes with Go 1.18 and later; Debian's own is newer.
reflect2=vendor/github.com/modern-go/reflect2
rm "$kubernetes/$reflect2"/*.go
cp root/usr/share/gocode/src/github.com/modern-go/reflect2/*.go "$kubernetes/$reflect2/"
rm -f "$kubernetes/$reflect2"/*_test.go

export GOROOT=$work/root/usr/lib/go-1.19 HOME=$work/home GOCACHE=$work/gocache GOPATH=$work/gopath
export GO111MODULE=off CGO_ENABLED=0 PATH=$GOROOT/bin:$PATH
cd "$kubernetes"

# The API server needs its OpenAPI definitions, which are generated and in no source package.
go build -o "$work/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=()
while read -r folder; do
    case $folder in
        staging/src/*) packages+=("k8s.io/kubernetes/vendor/${folder#staging/src/}") ;;
        *) packages+=("k8s.io/kubernetes/$folder") ;;
    esac
done < <(grep -rl '+k8s:openapi-gen=' --include=*.go pkg staging/src \
    | grep -v '_test.go\|/_examples/\|sample-\|code-generator\|/apis/example' | xargs -n1 dirname | sort -u)
"$work/openapi-gen" --logtostderr -i "$(IFS=,; echo "${packages[*]}")" -p k8s.io/kubernetes/pkg/generated/openapi \
    -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/violations.txt" \
    --output-base "$work/gopath/src"
sed -i 's#k8s.io/kubernetes/vendor/##g' pkg/generated/openapi/zz_generated.openapi.go

stamp="-X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v$version"
stamp="$stamp -X k8s.io/kubernetes/vendor/k8s.io/client-go/pkg/version.gitVersion=v$version"
for program in "${programs[@]}"; do
    echo "building $program"
    go build -p 2 -ldflags "-s -w $stamp" -o "$dir/bin/$program.new" "k8s.io/kubernetes/cmd/$program"
    mv "$dir/bin/$program.new" "$dir/bin/$program"
done
cp "$work"/root/usr/bin/{etcd,kubectl} "$dir/bin/"
chmod -R u+w "$work" && rm -rf "$work"
echo "Kubernetes $version is built: $dir/bin"
