# Off by default. A cluster for those who outgrow one machine: Dagster's official Helm chart with its Kubernetes run
# launcher starts one pod for each run (docs/deploy-gke.md says when, and what changes).

resource "google_container_cluster" "dagster" {
  count = var.gke ? 1 : 0

  name                = "cryptostream"
  location            = var.region
  enable_autopilot    = true
  network             = google_compute_network.this.id
  subnetwork          = google_compute_subnetwork.this.id
  deletion_protection = var.deletion_protection

  private_cluster_config {
    enable_private_nodes    = true
    enable_private_endpoint = true
  }

  ip_allocation_policy {}

  release_channel {
    channel = "STABLE"
  }
}

# Pods of the chart act as Dagster's service account, without a key.
resource "google_service_account_iam_member" "gke" {
  count = var.gke ? 1 : 0

  service_account_id = google_service_account.role["dagster"].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[dagster/dagster]"

  depends_on = [google_container_cluster.dagster]
}
