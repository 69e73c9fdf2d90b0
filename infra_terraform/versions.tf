# What reads these files, and where their state is.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 8.0"
    }
  }

  # The bucket is made once, by bootstrap/; `terraform init -backend-config=bucket=…` names it.
  backend "gcs" {
    prefix = "cryptostream"
  }
}

provider "google" {
  project = var.project
  region  = var.region

  default_labels = {
    app        = "cryptostream"
    managed_by = "terraform"
  }
}

# The services that the rest needs. They stay on when this is destroyed: something else may need them by then.
resource "google_project_service" "this" {
  for_each = toset(concat([
    "artifactregistry.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "iam.googleapis.com",
    "iap.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "secretmanager.googleapis.com",
    "storage.googleapis.com",
    ],
    var.bigquery ? ["bigquery.googleapis.com"] : [],
    var.gke ? ["container.googleapis.com"] : [],
  ))

  service            = each.value
  disable_on_destroy = false
}
