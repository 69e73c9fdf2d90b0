# One machine: a private address, a boot disk that holds nothing of ours, and a data disk that outlives it.

terraform {
  required_providers {
    google = {
      source = "hashicorp/google"
    }
  }
}

locals {
  # Another value makes those anew that read a mounted file when they start (docker/services.yaml). What compose files
  # say, Compose sees itself, and jobs run at each start-up anyway.
  mounted     = { for name, text in var.files : name => text if !can(regex("^docker/[^/]+[.]yaml$|[.]sh$", name)) }
  environment = merge(var.environment, { MOUNTED_FILES = substr(sha256(jsonencode(local.mounted)), 0, 16) })
}

resource "google_compute_disk" "data" {
  #checkov:skip=CKV_GCP_37:Google encrypts it with keys of its own; a key that a person can lose is a way to lose the data
  name = "${var.name}-data"
  zone = var.zone
  type = "pd-balanced"
  size = var.disk_gb

  lifecycle {
    prevent_destroy = true
    # A disk that was restored (docs/operations.md) has a snapshot that it is from, and is the same disk all the same.
    ignore_changes = [snapshot]
  }
}

# Kept when the machine is made anew: who knows it by its address finds the new one there.
resource "google_compute_address" "this" {
  name         = var.name
  address_type = "INTERNAL"
  subnetwork   = var.subnetwork
}

resource "google_compute_disk_resource_policy_attachment" "snapshots" {
  name = var.snapshot_policy
  disk = google_compute_disk.data.name
  zone = var.zone
}

resource "google_compute_instance" "this" {
  #checkov:skip=CKV_GCP_38:Google encrypts it with keys of its own; a key that a person can lose is a way to lose the data
  name                      = var.name
  zone                      = var.zone
  machine_type              = var.machine_type
  deletion_protection       = var.deletion_protection
  allow_stopping_for_update = true

  boot_disk {
    initialize_params {
      image = "debian-cloud/debian-13"
      size  = 20
      type  = "pd-balanced"
    }
  }

  # Found as /dev/disk/by-id/google-data, whatever order the kernel finds disks in.
  attached_disk {
    source      = google_compute_disk.data.id
    device_name = "data"
  }

  # No access_config: no public address.
  network_interface {
    subnetwork = var.subnetwork
    network_ip = google_compute_address.this.address
  }

  service_account {
    email  = var.service_account
    scopes = ["cloud-platform"]
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  metadata = {
    enable-oslogin         = "TRUE"
    block-project-ssh-keys = "TRUE"
    serial-port-enable     = "FALSE"
    startup-script         = join("\n", [for script in ["disk.sh", "startup.sh"] : file("${path.module}/${script}")])
    cryptostream = jsonencode({
      compose_file        = var.compose_file
      files               = var.files
      environment         = local.environment
      environment_secrets = var.environment_secrets
      folders             = var.folders
      secrets             = var.secrets
    })
  }

  lifecycle {
    # A newer Debian is taken by replacing the machine when a person wants it (docs/operations.md).
    ignore_changes = [boot_disk[0].initialize_params[0].image]
  }
}
