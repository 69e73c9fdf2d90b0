# A service account for each role, with what that role does and no more. docs/commit-chain.md derives the lake's.

locals {
  roles = {
    kafka    = "Kafka brokers"
    pipeline = "Producers, consumers and Postgres"
    dagster  = "Dagster: seals windows, builds Parquet and candles"
  }
}

resource "google_service_account" "role" {
  for_each = local.roles

  account_id   = "cryptostream-${each.key}"
  display_name = "CryptoStream: ${each.value}"

  depends_on = [google_project_service.this]
}

# What the start-up script says, and which disk fills, is in the project's log. (Metrics are Prometheus' own; nobody
# writes any to Google.)
resource "google_project_iam_member" "log" {
  for_each = local.roles

  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.role[each.key].member
}

# The consumer creates and reads; what was created nobody can change, whatever bug a consumer has.
resource "google_storage_bucket_iam_member" "raw_create" {
  bucket = google_storage_bucket.raw.name
  role   = "roles/storage.objectCreator"
  member = google_service_account.role["pipeline"].member
}

resource "google_storage_bucket_iam_member" "raw_view" {
  for_each = toset(["pipeline", "dagster"])

  bucket = google_storage_bucket.raw.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.role[each.value].member
}

# Claims alone are replaced, which Google counts as delete and create.
resource "google_storage_bucket_iam_member" "raw_progress" {
  bucket = google_storage_bucket.raw.name
  role   = "roles/storage.objectUser"
  member = google_service_account.role["pipeline"].member

  condition {
    title       = "progress only"
    description = "Objects below _progress/ are the only ones that are ever replaced."
    expression  = "resource.name.startsWith(\"projects/_/buckets/${google_storage_bucket.raw.name}/objects/${local.prefix}/_progress/\")"
  }
}

resource "google_storage_bucket_iam_member" "parquet" {
  bucket = google_storage_bucket.parquet.name
  role   = "roles/storage.objectUser"
  member = google_service_account.role["dagster"].member
}

resource "google_artifact_registry_repository_iam_member" "pull" {
  for_each = toset(["pipeline", "dagster"])

  location   = google_artifact_registry_repository.this.location
  repository = google_artifact_registry_repository.this.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.role[each.value].member
}

# People: a tunnel to the machines, a login on them, and nothing of the service accounts' but that it takes.
resource "google_project_iam_member" "operator" {
  for_each = {
    for pair in setproduct(var.operators, ["roles/iap.tunnelResourceAccessor", "roles/compute.osAdminLogin"]) :
    "${pair[0]} ${pair[1]}" => { member = pair[0], role = pair[1] }
  }

  project = var.project
  role    = each.value.role
  member  = each.value.member

  depends_on = [google_project_service.this]
}

resource "google_service_account_iam_member" "operator" {
  for_each = {
    for pair in setproduct(var.operators, keys(local.roles)) :
    "${pair[0]} ${pair[1]}" => { member = pair[0], account = pair[1] }
  }

  service_account_id = google_service_account.role[each.value.account].name
  role               = "roles/iam.serviceAccountUser"
  member             = each.value.member
}
