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
environment = root / "docker" / ".env"
environment.touch(mode=0o600)
environment.write_text("".join(lines))
PYTHON
}

# again COMMAND…: until it succeeds, for ten minutes. Rights and routes that were just made take effect late.
again() {
    local tries=60
    until "$@"; do
        tries=$((tries - 1))
        if [ "$tries" = 0 ]; then
            echo "error: for ten minutes this failed: $*" >&2
            return 1
        fi
        sleep 10
    done
}

# read_secret ID MAKE: print a secret, waiting for whoever makes it; make its first version if there is none and it is
# ours to make. Status 2: it has no version, and MAKE is `person`.
read_secret() {
    local id=$1 make=$2 tries=60 said=/run/cryptostream-secret
    until gcloud secrets versions access latest --secret="$id" </dev/null 2>"$said"; do
        if grep -q NOT_FOUND "$said"; then
            if [ "$make" = person ]; then
                return 2
            elif [ "$make" = True ] && head -c 32 /dev/urandom | base64 | tr -d '\n/+=' |
                gcloud secrets versions add "$id" --data-file=- --quiet 2>"$said" >&2; then
                continue
            fi
        fi
        tries=$((tries - 1))
        if [ "$tries" = 0 ]; then
            echo "error: secret $id cannot be read: $(cat "$said")" >&2
            return 1
        fi
        sleep 10
    done
}

# fetch_secret FILE ID MAKE: a secret as a file.
fetch_secret() {
    local file=$CONF/docker/secrets/$1
    read_secret "$2" "$3" >"$file.new"
    if ! grep -q '[^[:space:]]' "$file.new"; then
        echo "error: secret $2: its latest version is empty; add one that is not:" \
            "gcloud secrets versions add $2 --data-file=-" >&2
        return 1
    fi
    # Containers read it as users of their own; nobody else is on this machine.
    chmod 644 "$file.new"
    mv "$file.new" "$file"
}

# add_secret NAME ID: a variable whose value is a secret that a person adds; until then the machine goes on without.
add_secret() {
    local value status=0
    value=$(read_secret "$2" person) || status=$?
    if [ "$status" = 2 ]; then
        echo "secret $2 has no version yet, $1 is not set: gcloud secrets versions add $2 --data-file=-," \
            "then google_metadata_script_runner startup"
    elif [ "$status" = 0 ]; then
        printf "%s='%s'\n" "$1" "$value" >>"$CONF/docker/.env"
    else
        return "$status"
    fi
}

# A command for people: `sudo dc ps`, `sudo dc logs consumer`.
write_command() {
    printf '#!/bin/sh\nexec docker compose --project-directory %s -f %s "$@"\n' \
        "$CONF/docker" "$CONF/docker/$(said compose_file)" >/usr/local/bin/dc
    chmod 755 /usr/local/bin/dc
}

# Containers' packets are to fit through the network of the machine (network.tf); Docker's own choice is 1500.
write_docker_settings() {
    install -d /etc/docker
    echo '{"default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1460"}}}' >/etc/docker/daemon.json
}

# Every ten minutes: a disk that fills is told to the project's log, which is an alarm (monitoring.tf).
write_watch() {
    cat >/usr/local/sbin/cryptostream-disks <<WATCH
#!/bin/sh
df --output=pcent,target / $DATA | tail -n +2 | tr -d % | while read -r used where; do
    [ "\$used" -lt 80 ] ||
        gcloud logging write cryptostream-disks "\$(hostname): \$where is \$used % full" --severity=WARNING </dev/null
done
WATCH
    chmod 755 /usr/local/sbin/cryptostream-disks
    printf '[Service]\nType=oneshot\nEnvironment=HOME=/root\nExecStart=/usr/local/sbin/cryptostream-disks\n' \
        >/etc/systemd/system/cryptostream-disks.service
    printf '[Timer]\nOnActiveSec=1min\nOnUnitActiveSec=10min\n[Install]\nWantedBy=timers.target\n' \
        >/etc/systemd/system/cryptostream-disks.timer
    systemctl daemon-reload
    systemctl enable --quiet --now cryptostream-disks.timer
}

start() {
    export HOME=${HOME:-/root} # a service has none; Docker's and Google's settings are there
    curl -sSf -H 'Metadata-Flavor: Google' "$METADATA" -o /run/cryptostream.json
    mount_data /dev/disk/by-id/google-data "$DATA"
    said folders | while read -r folder owner; do
        install -d -o "$owner" -g "$owner" "$DATA/$folder"
    done

    write_docker_settings
    local wanted=()
    if ! command -v docker >/dev/null || ! docker compose version >/dev/null 2>&1; then
        wanted+=(docker.io docker-cli docker-compose) # since Debian 13 the client is a package of its own
    fi
    # Google's images bring it, and where it comes from.
    command -v gcloud >/dev/null || wanted+=(google-cloud-cli)
    if [ ${#wanted[@]} -gt 0 ]; then
        export DEBIAN_FRONTEND=noninteractive
        again apt-get update -qq
        again apt-get install -qq -y --no-install-recommends "${wanted[@]}" >/dev/null
    fi
    gcloud auth configure-docker "$(said environment | awk -F'\t' '$1 == "REGISTRY_HOST" {print $2}')" --quiet

    install -d -m 755 "$CONF/docker/secrets"
    write_files
    said secrets | while IFS=$'\t' read -r file id make; do
        fetch_secret "$file" "$id" "$make"
    done
    said environment_secrets | while IFS=$'\t' read -r name id; do
        add_secret "$name" "$id"
    done
    write_command
    write_watch
    # Not --wait: the brokers of one cluster wait for each other, and restart policies see to the rest.
    again /usr/local/bin/dc up -d --remove-orphans
    # The boot disk is small, and each upgrade leaves the images before it.
    docker image prune --all --force >/dev/null
}

start
