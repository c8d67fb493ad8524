#!/bin/sh
# Load this bundle where there is no internet: ./load.sh REGISTRY STORE
#
#   REGISTRY   the cluster's own registry, such as registry.internal:5000
#   STORE      root of the store that the cluster reads models from: s3://models, oci://registry.internal:5000/models
#
# Checks every file, copies the images (skopeo), stores the artifact (engineroom import; it is also in the toolkit
# image), and prints the command that installs the release. What is there already is not copied again.
# TLS=false for a registry without certificates; the store's endpoint and credentials come from the usual variables.
set -eu

cd "$(dirname "$0")"
if [ $# -ne 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' load.sh >&2
    exit 2
fi
registry=$1
store=${2%/}
tls=${TLS:-true}

for program in sha256sum skopeo engineroom; do
    if ! command -v "$program" >/dev/null; then
        echo "load.sh: no $program on this machine" >&2
        exit 2
    fi
done

echo "checking every file" >&2
sha256sum --check --quiet --strict SHA256SUMS

number=0
while read -r image; do
    # The same repository below the new registry: the first part of a name is its registry where it looks like a host.
    name=${image%@*}
    case ${name%%/*} in *.* | *:* | localhost) name=${name#*/} ;; esac
    # Registries make tags, not bare digests, from a copy; what the values name is the digest.
    target=$registry/$name:sha256-$(printf %s "${image#*@sha256:}" | cut -c 1-12)
    if [ -d "images/$number" ]; then
        echo "copying $image to $target" >&2
        skopeo copy --quiet --all --preserve-digests --dest-tls-verify="$tls" "dir:images/$number" "docker://$target"
    elif ! skopeo inspect --tls-verify="$tls" --format '{{.Digest}}' "docker://$registry/$name@${image#*@}" >/dev/null 2>&1; then
        echo "load.sh: $registry has no $name@${image#*@}, and this bundle does not carry it; where both are reached:" >&2
        echo "  skopeo copy --all --preserve-digests docker://$image docker://$target" >&2
        exit 4
    fi
    number=$((number + 1))
done <images.txt

{ read -r release && read -r source; } <release.txt
plain=
[ "$tls" = true ] || plain=--plain-http
# shellcheck disable=SC2086  # empty or one word
engineroom import artifact.tar --to "$store" $plain >&2
name=${source%%@*}
name=${name##*/}

set -- helm install "$release" charts/*.tgz
for file in values/*; do
    set -- "$@" --values "$file"
done
set -- "$@" --set "images.registry=$registry" --set "artifact.ref=$store/${name%%:*}@${source##*@}"
echo "loaded. Install it with (and with artifact.environment and artifact.credentialsSecret of your store):" >&2
echo "$@"
