# Where the two images are: built and pushed by a person or a CI, pulled by the machines.

resource "google_artifact_registry_repository" "this" {
  #checkov:skip=CKV_GCP_84:Google encrypts it with keys of its own; a key that a person can lose is a way to lose the data
  repository_id = "cryptostream"
  location      = var.region
  format        = "DOCKER"
  description   = "CryptoStream's two images"

  docker_config {
    immutable_tags = true
  }

  cleanup_policies {
    id     = "keep the last ten"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }

  cleanup_policies {
    id     = "delete older ones"
    action = "DELETE"
    condition {
      older_than = "2592000s"
    }
  }

  depends_on = [google_project_service.this]
}

locals {
  registry = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.this.repository_id}"
  images = {
    ingest  = "${local.registry}/ingest:${var.image_tag}"
    dagster = "${local.registry}/dagster:${var.image_tag}"
  }
}
