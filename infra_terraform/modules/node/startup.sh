# Runs at every boot, after disk.sh in the same script; doing it again changes nothing.
# shellcheck shell=bash disable=SC2148  # the first line of the script is disk.sh's

DATA=/var/lib/cryptostream-data
CONF=/etc/cryptostream
METADATA=http://metadata.google.internal/computeMetadata/v1/instance/attributes/cryptostream

# said KEY: a value of what Terraform told this machine; a map as lines of key and value, tab between.
said() {
    python3 - "$1" <<'PYTHON'
import json, sys
told = json.load(open("/run/cryptostream.json"))[sys.argv[1]]
if isinstance(told, str):
    print(told)
else:
    for key, value in told.items():
        print(key, value if not isinstance(value, dict) else f"{value['id']}\t{value['make']}", sep="\t")
PYTHON
}

write_files() {
    python3 - "$CONF" <<'PYTHON'
import json, pathlib, sys
root = pathlib.Path(sys.argv[1])
told = json.load(open("/run/cryptostream.json"))
for name, text in told["files"].items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if name.endswith(".sh"):
        path.chmod(0o755)
lines = [f"{name}={value}\n" for name, value in sorted(told["environment"].items())]
(root / "docker" / ".env").write_text("".join(lines))
PYTHON
}

# fetch_secret FILE ID MAKE: read a secret into a file; make its first version if there is none and it is ours to make.
fetch_secret() {
    local file=$CONF/docker/secrets/$1 id=$2 make=$3 tries=60
    until gcloud secrets versions access latest --secret="$id" >"$file.new" 2>/run/cryptostream-secret; do
        if [ "$make" = True ] && grep -q NOT_FOUND /run/cryptostream-secret; then
            head -c 32 /dev/urandom | base64 | tr -d '\n/+=' | gcloud secrets versions add "$id" --data-file=- --quiet
            continue
        fi
        tries=$((tries - 1))
        if [ "$tries" = 0 ]; then
            echo "error: secret $id cannot be read: $(cat /run/cryptostream-secret)" >&2
            return 1
        fi
        sleep 10 # the machine that makes it may not be up yet
    done
    # Containers read it as users of their own; nobody else is on this machine.
    chmod 644 "$file.new"
    mv "$file.new" "$file"
}

start() {
    curl -sSf -H 'Metadata-Flavor: Google' "$METADATA" -o /run/cryptostream.json
    mount_data /dev/disk/by-id/google-data "$DATA"
    said folders | while read -r folder owner; do
        install -d -o "$owner" -g "$owner" "$DATA/$folder"
    done

    if ! command -v docker >/dev/null || ! docker compose version >/dev/null 2>&1; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends docker.io docker-compose >/dev/null
    fi
    gcloud auth configure-docker "$(said environment | awk -F'\t' '$1 == "REGISTRY_HOST" {print $2}')" --quiet

    install -d -m 755 "$CONF/docker/secrets"
    write_files
    said secrets | while IFS=$'\t' read -r file id make; do
        fetch_secret "$file" "$id" "$make"
    done
    # Not --wait: the brokers of one cluster wait for each other, and restart policies see to the rest.
    docker compose --project-directory "$CONF/docker" -f "$CONF/docker/$(said compose_file)" up -d --remove-orphans
}

start
