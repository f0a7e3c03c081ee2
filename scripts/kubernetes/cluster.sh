#!/usr/bin/env bash
# A Kubernetes of one node for the tests, with real pods: the binaries that build.sh made, in a network namespace of its
# own with its own dockerd, so that nothing of this machine is touched. Root only. Ready in some 20 s, gone in a few.
#
#   scripts/kubernetes/cluster.sh up STATE_DIR [BIN_DIR]
#   scripts/kubernetes/cluster.sh down STATE_DIR
#
# This machine reaches it over a pair of virtual interfaces: the API at https://172.31.240.2:6443 (STATE_DIR/kubeconfig),
# pods at 172.31.241.x, services at 10.96.x.x, node ports at 172.31.240.2. Images: docker -H unix://STATE_DIR/docker.sock.
set -euo pipefail

verb=${1:?up or down} state=$(realpath -m "${2:?a folder for its state}")
bin=$(realpath -m "${3:-$HOME/.cache/modelkit-tests/kubernetes/bin}")
namespace=mkk8s outside=172.31.240.1 node=172.31.240.2 pods=172.31.241.0/24 bridge=172.31.241.1 services=10.96.0.0/16
inside=(nsenter --net="/var/run/netns/$namespace")
docker=(docker -H "unix://$state/docker.sock")

# run NAME COMMAND...: a process of the cluster in the background, its log and its pid in the state folder.
run() {
    local name=$1
    shift
    setsid nohup "${inside[@]}" "$@" >"$state/$name.log" 2>&1 9>&- &
    echo $! >"$state/$name.pid"
}

# until_ok SECONDS WHAT COMMAND...: wait for a command to succeed.
until_ok() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > deadline)); then
            echo "$what did not come up; see the logs in $state" >&2
            exit 1
        fi
        sleep 0.2
    done
}

kubectl() { "$bin/kubectl" --kubeconfig "$state/kubeconfig" "$@"; }
node_is_ready() { kubectl get node node1 | grep -q ' Ready'; }

up_network() {
    ip netns add "$namespace"
    ip link add mkk8s0 type veth peer name eth0 netns "$namespace"
    ip addr add "$outside/30" dev mkk8s0
    ip link set mkk8s0 up
    "${inside[@]}" ip addr add "$node/30" dev eth0
    "${inside[@]}" ip link set lo up
    "${inside[@]}" ip link set eth0 up
    ip route add "$pods" via "$node"
    ip route add "$services" via "$node"
    "${inside[@]}" ip route add default via "$outside"
}

# Some machines let nobody lower an OOM score; Kubernetes does it for its pods, and nothing here depends on it.
write_runc() {
    cat >"$state/runc" <<'RUNC'
#!/bin/bash
bundle="" previous=""
for argument in "$@"; do
    case $previous in --bundle | -b) bundle=$argument ;; esac
    case $argument in --bundle=*) bundle=${argument#--bundle=} ;; esac
    previous=$argument
done
if [[ -n $bundle && -f $bundle/config.json ]]; then
    jq -c 'if (.process.oomScoreAdj // 0) < 0 then .process.oomScoreAdj = 0 else . end' \
        "$bundle/config.json" >"$bundle/config.new" && mv "$bundle/config.new" "$bundle/config.json"
fi
exec "$(command -v runc || echo /usr/sbin/runc)" "$@"
RUNC
    chmod +x "$state/runc"
}

write_credentials() {
    local token
    token=$(openssl rand -hex 16)
    openssl genrsa -out "$state/sa.key" 2048 2>/dev/null
    (umask 077 && echo "$token,admin,admin,system:masters" >"$state/tokens.csv")
    (umask 077 && cat >"$state/kubeconfig" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://$node:6443", certificate-authority: $state/certs/apiserver.crt}}]
users: [{name: admin, user: {token: $token}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
CONFIG
    )
}

# The pause container of each pod: a program that sleeps, in an image of its own.
build_pause() {
    mkdir -p "$state/pause"
    echo '#include <signal.h>
#include <unistd.h>
static void end(int n) { (void)n; _exit(0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }' >"$state/pause/pause.c"
    gcc -Os -static -o "$state/pause/pause" "$state/pause/pause.c"
    tar -C "$state/pause" -c pause | "${docker[@]}" import --change 'ENTRYPOINT ["/pause"]' - pause:1 >/dev/null
}

up() {
    [[ -x $bin/kubelet ]] || { echo "there is no Kubernetes in $bin; build it: make kubernetes" >&2; exit 1; }
    mkdir -p "$state"/{certs,volume-plugins}
    trap 'status=$?; ((status == 0)) || down' EXIT
    down_network
    up_network
    write_runc
    write_credentials
    # Without Docker's own firewall rules: what comes over the virtual interface may go to the pods.
    run dockerd dockerd -H "unix://$state/docker.sock" --data-root "$state/docker" --exec-root "$state/docker-exec" \
        --pidfile "$state/docker.pid" --bip "$bridge/24" --iptables=false --add-runtime "patched=$state/runc" \
        --default-runtime patched
    run etcd "$bin/etcd" --data-dir "$state/etcd" --listen-client-urls http://127.0.0.1:2379 \
        --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
    run apiserver "$bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=0.0.0.0 \
        --advertise-address="$node" --secure-port=6443 --cert-dir="$state/certs" \
        --token-auth-file="$state/tokens.csv" --authorization-mode=RBAC --service-account-issuer=https://test \
        --service-account-key-file="$state/sa.key" --service-account-signing-key-file="$state/sa.key" \
        --service-cluster-ip-range="$services" --allow-privileged=true --kubelet-preferred-address-types=InternalIP
    until_ok 120 "the API server" kubectl get --raw /readyz
    run controllers "$bin/kube-controller-manager" --kubeconfig="$state/kubeconfig" \
        --service-account-private-key-file="$state/sa.key" --leader-elect=false --bind-address=127.0.0.1
    run scheduler "$bin/kube-scheduler" --kubeconfig="$state/kubeconfig" --leader-elect=false --bind-address=127.0.0.1
    until_ok 60 "dockerd" "${docker[@]}" info
    build_pause
    run kubelet "$bin/kubelet" --kubeconfig="$state/kubeconfig" --container-runtime=docker \
        --docker-endpoint="unix://$state/docker.sock" --pod-infra-container-image=pause:1 \
        --root-dir="$state/kubelet-root" --experimental-dockershim-root-directory="$state/dockershim" \
        --cert-dir="$state/kubelet-certs" --volume-plugin-dir="$state/volume-plugins" --cgroup-driver=cgroupfs \
        --cgroups-per-qos=false --enforce-node-allocatable= --fail-swap-on=false --make-iptables-util-chains=false \
        --image-gc-high-threshold=100 --eviction-hard= --resolv-conf= --hostname-override=node1 --address="$node" \
        --node-ip="$node" --read-only-port=0 --runtime-cgroups=/ --kubelet-cgroups=/ --anonymous-auth=true \
        --authorization-mode=AlwaysAllow --registry-qps=0 --event-qps=0
    run proxy "$bin/kube-proxy" --kubeconfig="$state/kubeconfig" --proxy-mode=iptables --hostname-override=node1 \
        --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
        --healthz-bind-address=127.0.0.1:10256 --bind-address="$node"
    until_ok 120 "the node" node_is_ready
    # Pods are admitted once the controllers have made the namespace's service account.
    until_ok 60 "the namespace" kubectl get serviceaccount default
}

pid_of() { cat "$state/$1.pid" 2>/dev/null || true; }

down_network() {
    ip netns del "$namespace" 2>/dev/null || true
    ip link del mkk8s0 2>/dev/null || true
}

down() {
    local name pid mounted
    # Nothing of it is kept: what has no child of its own is killed at once.
    for name in proxy kubelet scheduler controllers apiserver etcd; do
        pid=$(pid_of $name)
        [[ -z $pid ]] || kill -9 "$pid" 2>/dev/null || true
    done
    "${docker[@]}" ps -q 2>/dev/null | xargs -r "${docker[@]}" kill >/dev/null 2>&1 || true
    pid=$(pid_of dockerd)
    if [[ -n $pid ]] && kill "$pid" 2>/dev/null; then
        for _ in $(seq 200); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    fi
    for mounted in $(awk -v state="$state/" 'index($2, state) == 1 {print $2}' /proc/mounts | sort -r); do
        umount -l "$mounted" || true
    done
    down_network
    rm -rf "$state"
}

case $verb in
    up) up && kubectl get nodes ;;
    down) down ;;
    *) echo "up or down, not $verb" >&2; exit 2 ;;
esac
