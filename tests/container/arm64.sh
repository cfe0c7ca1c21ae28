#!/usr/bin/env bash
# Builds the image for linux/arm64 on a machine of another kind, plays a bundle's golden cases in it, and serves it.
# docs/howto/serve/deploy.md says what that takes.
# With Docker's engine: by buildx, on the official base. Without: by the program that CONTAINER_TOOL names, on a base of
# Debian's packages, unpacked. Either way through QEMU 10 or later: 7.2, Debian 12's own, hangs in ONNX Runtime.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
tool=${CONTAINER_TOOL:-$root/../shared/tools/container}
tag=trpo-tf-serving-arm64 base=localhost/trpo-tf-base-arm64
verify="import platform, trpo_tf.serving.verify as v; print('on', platform.machine(), v.verify('/models'))"
ask='{"inputs": [{"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [0.1, -0.2, 0.05, 0.3]}]}'
port=8099
bundle=$root/tests/serving/bundles/discrete

# The interpreter of programs for arm64, kept open by the kernel (F), so that it works in any root.
emulate() {
  [[ $(uname -m) != aarch64 && ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]] || return 0
  local folder suite mirror; folder=$(mktemp -d)
  # shellcheck disable=SC1091
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null \
    | sed -n 's/^URIs: *//p; s/^deb \([^ ]*\).*/\1/p' | sed -n 1p) || true # one of the two files is missing
  echo "deb $mirror $suite-backports main" >"$folder/list"
  mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
  local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$folder/list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache")
  "${apt[@]}" update
  (cd "$folder" && "${apt[@]}" -o APT::Sandbox::User=root download qemu-user && dpkg -x qemu-user_*.deb .)
  install -D "$folder/usr/bin/qemu-aarch64" /usr/local/lib/qemu-aarch64
  rm -rf "$folder"
  mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  printf '%s' ':qemu-aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/local/lib/qemu-aarch64:OCF' \
    >/proc/sys/fs/binfmt_misc/register
}

# Unpacked and not configured: no program of the other kind runs for it.
make_base() {
  "$tool" podman image exists "$base" && return 0
  local tar; tar=$(mktemp --suffix=.tar)
  mmdebstrap --quiet --arch=arm64 --variant=extract \
    --include=dash,bash,coreutils,findutils,sed,grep,base-files,python3,python3-venv,python3-pip,libstdc++6,ca-certificates \
    --customize-hook='ln -sf dash "$1"/bin/sh; rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale "$1"/var/lib/apt/lists/*' \
    bookworm "$tar"
  "$tool" podman import --quiet --arch arm64 --os linux "$tar" "$base" >/dev/null
  rm -f "$tar"
}

emulate
if docker info >/dev/null 2>&1; then
  docker buildx build --platform linux/arm64 --load --tag "$tag" "$root"
  run=(docker run --publish "127.0.0.1:$port:$port") stop=(docker stop)
else
  "$tool" base >/dev/null
  make_base
  "$tool" build "$tag" "$root" --platform linux/arm64 --build-arg "BASE_IMAGE=$base"
  run=("$tool" run) stop=("$tool" podman stop)
fi
run+=(--rm --platform linux/arm64 --read-only --cap-drop=ALL "--volume=$bundle:/models:ro")
"${run[@]}" --entrypoint=python "$tag" -c "$verify"
"${run[@]}" --name "$tag" --env "PORT=$port" "$tag" &
trap '"${stop[@]}" "$tag" >/dev/null; wait' EXIT
curl --silent --show-error --fail --retry 60 --retry-delay 1 --retry-all-errors --data "$ask" \
  "http://127.0.0.1:$port/v2/models/discrete/infer"
echo
