# What a person needs next.

locals {
  tunnel = "gcloud compute ssh %s --project=${var.project} --zone=${var.zones[0]} --tunnel-through-iap -- -N"
}

output "tunnels" {
  description = "Commands that bring the user interfaces to this machine's loopback."
  value = {
    dagster    = "${format(local.tunnel, module.dagster.name)} -L 3000:127.0.0.1:3000   # http://127.0.0.1:3000"
    grafana    = "${format(local.tunnel, module.dagster.name)} -L 3001:127.0.0.1:3001   # http://127.0.0.1:3001"
    prometheus = "${format(local.tunnel, module.dagster.name)} -L 9090:127.0.0.1:9090   # http://127.0.0.1:9090"
    kafka_ui   = "${format(local.tunnel, module.pipeline.name)} -L 8080:127.0.0.1:8080   # http://127.0.0.1:8080"
    postgres   = "${format(local.tunnel, module.pipeline.name)} -L 5432:127.0.0.1:5432   # psql -h 127.0.0.1 -U cryptostream"
  }
}

output "images" {
  description = "What the machines pull: build and push these."
  value       = local.images
}

output "urls" {
  description = "RAW_URL and PARQUET_URL, for tools on other machines."
  value = {
    RAW_URL     = local.common_environment.RAW_URL
    PARQUET_URL = local.common_environment.PARQUET_URL
  }
}

output "gke_values" {
  description = "Values for Dagster's Helm chart; null without a cluster."
  value = !var.gke ? null : templatefile("${path.module}/gke/values.yaml", {
    service_account = google_service_account.role["dagster"].email
    postgres_host   = module.pipeline.address
    parquet_bucket  = google_storage_bucket.parquet.name
    run_logs        = local.run_logs
    repository      = trimsuffix(local.images.dagster, ":${var.image_tag}")
    tag             = var.image_tag
    # What the compose files give Dagster's containers.
    environment = jsonencode([
      for name, value in merge({
        SOURCE           = "upbit"
        MARKET_TIME_ZONE = "Asia/Seoul"
        POSTGRES_HOST    = module.pipeline.address
        POSTGRES_USER    = "cryptostream"
        POSTGRES_DB      = "cryptostream"
        }, var.settings, {
        for name in ["RAW_URL", "PARQUET_URL", "PARTITIONS_START", "RAW_RETENTION_DAYS"] : name => module.dagster.told.environment[name]
        if contains(keys(module.dagster.told.environment), name)
      }) : { name = name, value = value }
    ])
  })
}

output "kafka_bootstrap" {
  description = "KAFKA_BOOTSTRAP, within the network."
  value       = local.kafka_bootstrap
}
