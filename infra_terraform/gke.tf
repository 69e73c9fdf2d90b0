# Off by default. A cluster for those who outgrow one machine: Dagster's official Helm chart with its Kubernetes run
# launcher starts one pod for each run (docs/deploy-gke.md says when, and what changes).

locals {
  # Pods and services of the cluster, beside the machines' 10.20.0.0/24.
  cluster_ranges = { pods = "10.21.0.0/17", services = "10.22.0.0/20" }
  # Where runs' output goes, in the bucket of the Parquet.
  run_logs = "dagster-logs"
}

# The nodes themselves pull images and write logs; what a run may do, its pod's account says.
resource "google_service_account" "nodes" {
  count = var.gke ? 1 : 0

  account_id   = "cryptostream-nodes"
  display_name = "CryptoStream: nodes of the cluster"

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "nodes" {
  count = var.gke ? 1 : 0

  project = var.project
  role    = "roles/container.defaultNodeServiceAccount"
  member  = google_service_account.nodes[0].member
}

resource "google_artifact_registry_repository_iam_member" "nodes" {
  count = var.gke ? 1 : 0

  location   = google_artifact_registry_repository.this.location
  repository = google_artifact_registry_repository.this.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.nodes[0].member
}

resource "google_container_cluster" "dagster" {
  count = var.gke ? 1 : 0

  name                = "cryptostream"
  location            = var.region
  enable_autopilot    = true
  network             = google_compute_network.this.id
  subnetwork          = google_compute_subnetwork.this.id
  deletion_protection = var.deletion_protection

  private_cluster_config {
    enable_private_nodes = true
  }

  # Its API has no address, public or private: it is reached by its name, and Google asks who it is, as IAP does.
  control_plane_endpoints_config {
    dns_endpoint_config {
      allow_external_traffic = true
    }
    ip_endpoints_config {
      enabled = false
    }
  }

  cluster_autoscaling {
    auto_provisioning_defaults {
      service_account = google_service_account.nodes[0].email
      oauth_scopes    = ["https://www.googleapis.com/auth/cloud-platform"]
    }
  }

  ip_allocation_policy {
    cluster_secondary_range_name  = "pods"
    services_secondary_range_name = "services"
  }

  release_channel {
    channel = "STABLE"
  }

  depends_on = [google_project_iam_member.nodes, google_artifact_registry_repository_iam_member.nodes]
}

# Pods of the chart act as Dagster's service account, without a key.
resource "google_service_account_iam_member" "gke" {
  count = var.gke ? 1 : 0

  service_account_id = google_service_account.role["dagster"].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[dagster/dagster]"

  depends_on = [google_container_cluster.dagster]
}

# What keeps their output looks at the bucket itself when it starts (dagster-gcp), which objectUser does not allow.
resource "google_storage_bucket_iam_member" "run_logs" {
  count = var.gke ? 1 : 0

  bucket = google_storage_bucket.parquet.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.role["dagster"].member
}

# Pods have addresses of their own and no service account that a firewall knows: they are let in by their range.
resource "google_compute_firewall" "gke" {
  count = var.gke ? 1 : 0

  name                    = "cryptostream-gke-postgres"
  network                 = google_compute_network.this.id
  direction               = "INGRESS"
  source_ranges           = [local.cluster_ranges.pods]
  target_service_accounts = [google_service_account.role["pipeline"].email]

  allow {
    protocol = "tcp"
    ports    = ["5432"]
  }
}
