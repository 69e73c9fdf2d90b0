# Once for a project: the bucket in which Terraform keeps its state. Its own state stays in this folder; losing it loses
# nothing, the bucket can be imported.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 8.0"
    }
  }
}

variable "project" {
  description = "Id of the Google Cloud project."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project must be a project's id: 6 to 30 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "region" {
  description = "Region of the bucket."
  type        = string
  default     = "asia-northeast3"
}

provider "google" {
  project = var.project
}

resource "google_storage_bucket" "state" {
  #checkov:skip=CKV_GCP_62:access to the state is in the audit log of the project
  name                        = "${var.project}-cryptostream-state"
  location                    = upper(var.region)
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      num_newer_versions = 50
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}

output "next" {
  description = "What to run in infra_terraform/ now."
  value       = "terraform init -backend-config=bucket=${google_storage_bucket.state.name}"
}
