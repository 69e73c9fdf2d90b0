# Passwords. They are in Secret Manager and nowhere else: the first machine that needs one makes it, so that neither
# this code nor its state ever holds it (see the node module's start-up script). What only a person knows, the webhook's
# URL, a person adds.

locals {
  # Who makes a secret's first version, and who reads it.
  secrets = merge({
    postgres-password       = { maker = "pipeline", readers = ["pipeline", "dagster"] }
    grafana-reader-password = { maker = "pipeline", readers = ["pipeline", "dagster"] }
    grafana-password        = { maker = "dagster", readers = ["dagster"] }
    }, var.alert_webhook ? {
    alert-webhook-url = { maker = null, readers = ["dagster"] }
  } : {})
}

resource "google_secret_manager_secret" "this" {
  for_each = local.secrets

  secret_id           = "cryptostream-${each.key}"
  deletion_protection = var.deletion_protection

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }

  depends_on = [google_project_service.this]
}

resource "google_secret_manager_secret_iam_member" "maker" {
  for_each = { for name, secret in local.secrets : name => secret if secret.maker != null }

  secret_id = google_secret_manager_secret.this[each.key].id
  role      = "roles/secretmanager.secretVersionAdder"
  member    = google_service_account.role[each.value.maker].member
}

resource "google_secret_manager_secret_iam_member" "reader" {
  for_each = merge([
    for name, secret in local.secrets : { for role in secret.readers : "${name} ${role}" => { name = name, role = role } }
  ]...)

  secret_id = google_secret_manager_secret.this[each.value.name].id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.role[each.value.role].member
}
