# What Google would answer, as far as it matters: each role's account is told from the others.

mock_resource "google_compute_firewall" {
  defaults = {
    source_ranges = []
  }
}

mock_resource "google_compute_address" {
  defaults = {
    address = "10.20.0.5"
  }
}

override_resource {
  target = google_service_account.role["kafka"]
  values = {
    email  = "kafka@test.iam.gserviceaccount.com"
    member = "serviceAccount:kafka@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/kafka@test.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_service_account.role["pipeline"]
  values = {
    email  = "pipeline@test.iam.gserviceaccount.com"
    member = "serviceAccount:pipeline@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/pipeline@test.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_service_account.role["dagster"]
  values = {
    email  = "dagster@test.iam.gserviceaccount.com"
    member = "serviceAccount:dagster@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/dagster@test.iam.gserviceaccount.com"
  }
}

override_resource {
  target = google_service_account.nodes
  values = {
    email  = "nodes@test.iam.gserviceaccount.com"
    member = "serviceAccount:nodes@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/nodes@test.iam.gserviceaccount.com"
  }
}
