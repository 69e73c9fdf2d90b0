# One private network. No machine has a public address: out through NAT, in through IAP, Google's APIs directly.

resource "google_compute_network" "this" {
  name                            = "cryptostream"
  auto_create_subnetworks         = false
  routing_mode                    = "REGIONAL"
  mtu                             = 1460 # modules/node/startup.sh tells Docker
  delete_default_routes_on_create = false

  depends_on = [google_project_service.this]
}

resource "google_compute_subnetwork" "this" {
  name                     = "cryptostream-subnet"
  network                  = google_compute_network.this.id
  region                   = var.region
  ip_cidr_range            = "10.20.0.0/24"
  private_ip_google_access = true

  dynamic "secondary_ip_range" {
    for_each = var.gke ? local.cluster_ranges : {}

    content {
      range_name    = secondary_ip_range.key
      ip_cidr_range = secondary_ip_range.value
    }
  }

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
    metadata             = "EXCLUDE_ALL_METADATA"
  }
}

resource "google_compute_router" "this" {
  name    = "cryptostream"
  network = google_compute_network.this.id
  region  = var.region
}

# The exchange and image registries are outside. The exchange counts connections by address: one address is enough.
resource "google_compute_router_nat" "this" {
  name                               = "cryptostream"
  router                             = google_compute_router.this.name
  region                             = var.region
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"

  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}

locals {
  # Google's own range for TCP forwarding by IAP; nothing else of the internet gets in.
  iap_range = "35.235.240.0/20"

  # Who may open a connection to whom, by service account: a machine is what its account says, not where it stands.
  flows = {
    kafka-clients    = { from = ["pipeline"], to = "kafka", ports = ["9092"] }
    kafka-peers      = { from = ["kafka"], to = "kafka", ports = ["9092", "9093"] }
    postgres         = { from = ["dagster"], to = "pipeline", ports = ["5432"] }
    pipeline-metrics = { from = ["dagster"], to = "pipeline", ports = ["9101", "9102"] }
  }
}

resource "google_compute_firewall" "flow" {
  for_each = local.flows

  name                    = "cryptostream-${each.key}"
  network                 = google_compute_network.this.id
  direction               = "INGRESS"
  source_service_accounts = [for role in each.value.from : google_service_account.role[role].email]
  target_service_accounts = [google_service_account.role[each.value.to].email]

  allow {
    protocol = "tcp"
    ports    = each.value.ports
  }
}

# SSH, and through it every user interface: they listen on their machine's loopback.
resource "google_compute_firewall" "iap" {
  name                    = "cryptostream-iap-ssh"
  network                 = google_compute_network.this.id
  direction               = "INGRESS"
  source_ranges           = [local.iap_range]
  target_service_accounts = [for account in google_service_account.role : account.email]

  allow {
    protocol = "tcp"
    ports    = ["22"]
  }
}
