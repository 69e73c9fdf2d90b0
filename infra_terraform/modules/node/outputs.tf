output "name" {
  description = "Name of the machine."
  value       = google_compute_instance.this.name
}

output "zone" {
  description = "Where it is."
  value       = google_compute_instance.this.zone
}

output "address" {
  description = "Its private address, for as long as the platform stands."
  value       = google_compute_address.this.address
}

output "instance" {
  description = "The machine, for tests."
  value       = google_compute_instance.this
}

output "snapshots" {
  description = "How its data disk is snapshotted, for tests."
  value       = google_compute_disk_resource_policy_attachment.snapshots
}

output "told" {
  description = "What the machine is told by its metadata; no secrets."
  value = {
    compose_file        = var.compose_file
    environment         = local.environment
    environment_secrets = var.environment_secrets
    files               = keys(var.files)
    folders             = var.folders
    secrets             = var.secrets
  }
}
