# Two buckets: what was received, for ever, and what was built from it.

locals {
  prefix         = "orderbook"
  raw_bucket     = coalesce(var.raw_bucket, "${var.project}-cryptostream-raw")
  parquet_bucket = coalesce(var.parquet_bucket, "${var.project}-cryptostream-parquet")
}

resource "google_storage_bucket" "raw" {
  #checkov:skip=CKV_GCP_62:a log line for each of a thousand small objects a minute costs more than the objects
  #checkov:skip=CKV_GCP_78:objects are never overwritten, but for claims, whose old versions say nothing; soft delete keeps what is deleted
  name                        = local.raw_bucket
  location                    = upper(var.region)
  storage_class               = "STANDARD"
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  # What a person deletes by mistake can be brought back for a month.
  soft_delete_policy {
    retention_duration_seconds = 30 * 24 * 3600
  }

  # Data alone expires, by the names that data has. _commits/, _chains/, _progress/ and lake.json match none of them.
  dynamic "lifecycle_rule" {
    for_each = var.raw_days == null ? [] : [var.raw_days]

    content {
      action {
        type = "Delete"
      }
      condition {
        # A day after the window is frozen (RAW_RETENTION_DAYS): whoever began to build it is done by then.
        age            = lifecycle_rule.value + 1
        matches_prefix = [for kind in ["ticker=", "coverage/", "quarantine/"] : "${local.prefix}/${kind}"]
      }
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 1
    }
  }

  # Objects of some ten kB are charged as 128 kB in colder classes: nothing here moves to one.

  lifecycle {
    prevent_destroy = true
  }

  depends_on = [google_project_service.this]
}

resource "google_storage_bucket" "parquet" {
  #checkov:skip=CKV_GCP_62:a log line for each of a thousand small objects a minute costs more than the objects
  #checkov:skip=CKV_GCP_78:an overwritten object can be built again from the raw lake
  name                        = local.parquet_bucket
  location                    = upper(var.region)
  storage_class               = "STANDARD"
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  soft_delete_policy {
    retention_duration_seconds = 7 * 24 * 3600
  }

  # What runs on a cluster print; nothing there unless gke is on.
  dynamic "lifecycle_rule" {
    for_each = var.gke ? [local.run_logs] : []

    content {
      action {
        type = "Delete"
      }
      condition {
        age            = 30
        matches_prefix = ["${lifecycle_rule.value}/"]
      }
    }
  }

  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 1
    }
  }

  lifecycle {
    prevent_destroy = true
  }

  depends_on = [google_project_service.this]
}
