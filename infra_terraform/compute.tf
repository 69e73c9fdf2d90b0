# The pipeline's machine and Dagster's, and what all machines share.

locals {
  docker_files = {
    for name in setunion(fileset("${path.root}/../docker", "*.yaml"), fileset("${path.root}/../docker", "{prometheus,grafana,postgres}/**")) :
    name => file("${path.root}/../docker/${name}")
  }
  common_environment = {
    DATA_DIR      = "/var/lib/cryptostream-data"
    REGISTRY_HOST = "${var.region}-docker.pkg.dev"
    SECRETS       = "/etc/cryptostream/docker/secrets"
    RAW_URL       = "gs://${google_storage_bucket.raw.name}/${local.prefix}"
    PARQUET_URL   = "gs://${google_storage_bucket.parquet.name}/${local.prefix}"
    INGEST_IMAGE  = local.images.ingest
    DAGSTER_IMAGE = local.images.dagster
  }
  # What docker/'s compose files read (`${NAME…}`, or a name without a value), and which of it a person may say.
  read_by_compose = toset([
    for found in regexall("(?m)\\$\\{([A-Z_]+)|^ +([A-Z_]+):$", join("\n", [
      for name in ["services.yaml", "compose.pipeline.yaml", "compose.dagster.yaml"] : local.docker_files[name]
    ])) : coalesce(found[0], found[1])
  ])
  settable = setsubtract([for name in local.read_by_compose : name if !startswith(name, "KAFKA_")], [
    # Said here.
    "COMPOSE_PROFILES", "CONSUMER_CONF", "DAGSTER_IMAGE", "DATA_DIR", "INGEST_IMAGE", "MOUNTED_FILES", "PARQUET_URL",
    "PARTITIONS_START", "PIPELINE_ADDRESS", "POSTGRES_HOST", "PRODUCER_CONF", "RAW_RETENTION_DAYS", "RAW_URL", "SECRETS",
    # A secret: alert_webhook.
    "ALERT_WEBHOOK_URL",
    # A machine of Google's has the real store, the compose files' own names, and one process for each published port.
    "STORAGE_EMULATOR_HOST", "DAGSTER_CODE_HOST", "DAGSTER_POSTGRES_DB", "POSTGRES_DB", "POSTGRES_USER", "PROMETHEUS_URL",
    "PRODUCERS", "CONSUMERS",
  ])
  secret_ids = { for name, secret in google_secret_manager_secret.this : name => secret.secret_id }
}

resource "google_compute_resource_policy" "daily" {
  name   = "cryptostream-daily"
  region = var.region

  snapshot_schedule_policy {
    schedule {
      daily_schedule {
        days_in_cycle = 1
        start_time    = "18:00" # UTC; three in the morning in Seoul
      }
    }
    retention_policy {
      max_retention_days    = 14
      on_source_disk_delete = "KEEP_AUTO_SNAPSHOTS"
    }
  }

  depends_on = [google_project_service.this]
}

module "pipeline" {
  source = "./modules/node"

  name                = "cryptostream-pipeline"
  zone                = var.zones[0]
  machine_type        = var.pipeline.machine_type
  disk_gb             = var.pipeline.disk_gb
  subnetwork          = google_compute_subnetwork.this.id
  service_account     = google_service_account.role["pipeline"].email
  snapshot_policy     = google_compute_resource_policy.daily.name
  deletion_protection = var.deletion_protection
  compose_file        = "compose.pipeline.yaml"
  folders             = { spool = 1000, postgres = 999 }
  files = merge(
    { for name in ["services.yaml", "compose.pipeline.yaml", "postgres/create-databases.sh"] : "docker/${name}" => local.docker_files[name] },
    { "producer.conf" = file(var.producer_conf), "consumer.conf" = file(var.consumer_conf) },
  )
  environment = merge(local.common_environment, var.settings, {
    KAFKA_BOOTSTRAP = local.kafka_bootstrap
    PRODUCER_CONF   = "/etc/cryptostream/producer.conf"
    CONSUMER_CONF   = "/etc/cryptostream/consumer.conf"
  })
  secrets = {
    postgres_password       = { id = local.secret_ids["postgres-password"], make = true }
    grafana_reader_password = { id = local.secret_ids["grafana-reader-password"], make = true }
  }

  # The way out, for its first boot.
  depends_on = [google_compute_router_nat.this]
}

module "dagster" {
  source = "./modules/node"

  name                = "cryptostream-dagster"
  zone                = var.zones[0]
  machine_type        = var.dagster.machine_type
  disk_gb             = var.dagster.disk_gb
  subnetwork          = google_compute_subnetwork.this.id
  service_account     = google_service_account.role["dagster"].email
  snapshot_policy     = google_compute_resource_policy.daily.name
  deletion_protection = var.deletion_protection
  compose_file        = "compose.dagster.yaml"
  folders             = { prometheus = 65534, grafana = 472, dagster-logs = 1000, scratch = 1000 }
  files               = { for name, text in local.docker_files : "docker/${name}" => text if !startswith(name, "postgres/") }
  environment = merge(local.common_environment, var.settings, {
    # Two daemons on one storage would both tick: with a cluster, this one's is not started.
    COMPOSE_PROFILES = var.gke ? "monitoring" : "dagster,monitoring"
    PIPELINE_ADDRESS = module.pipeline.address
    POSTGRES_HOST    = module.pipeline.address
    PARTITIONS_START = var.partitions_start
  }, var.raw_days == null ? {} : { RAW_RETENTION_DAYS = tostring(var.raw_days) })
  secrets = {
    postgres_password       = { id = local.secret_ids["postgres-password"], make = false }
    grafana_reader_password = { id = local.secret_ids["grafana-reader-password"], make = false }
    grafana_password        = { id = local.secret_ids["grafana-password"], make = true }
  }
  environment_secrets = var.alert_webhook ? { ALERT_WEBHOOK_URL = local.secret_ids["alert-webhook-url"] } : {}

  # The way out, for its first boot.
  depends_on = [google_compute_router_nat.this]
}
