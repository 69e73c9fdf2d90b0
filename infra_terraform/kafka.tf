# Three brokers, each also a controller (KRaft), one in each zone.

locals {
  broker_names = [for number in range(3) : "cryptostream-kafka-${number + 1}"]
  # Google's own DNS knows every machine of the network by this name.
  brokers = [
    for number, name in local.broker_names : "${name}.${var.zones[number]}.c.${var.project}.internal"
  ]
  # One id for the cluster, the same for all who format its disks: 22 characters, as kafka-storage makes them.
  cluster_id      = replace(replace(substr(base64sha256("${var.project} cryptostream kafka"), 0, 22), "+", "-"), "/", "_")
  kafka_bootstrap = join(",", [for host in local.brokers : "${host}:9092"])
}

module "kafka" {
  source = "./modules/node"
  count  = 3

  name                = local.broker_names[count.index]
  zone                = var.zones[count.index]
  machine_type        = var.kafka.machine_type
  disk_gb             = var.kafka.disk_gb
  subnetwork          = google_compute_subnetwork.this.id
  service_account     = google_service_account.role["kafka"].email
  snapshot_policy     = google_compute_resource_policy.daily.name
  deletion_protection = var.deletion_protection
  compose_file        = "compose.kafka.yaml"
  folders             = { kafka = 1000 }
  files               = { for name in ["services.yaml", "compose.kafka.yaml"] : "docker/${name}" => local.docker_files[name] }
  environment = merge(local.common_environment, {
    KAFKA_NODE_ID         = tostring(count.index + 1)
    KAFKA_HOST            = local.brokers[count.index]
    KAFKA_RACK            = var.zones[count.index]
    KAFKA_CLUSTER_ID      = local.cluster_id
    KAFKA_QUORUM_VOTERS   = join(",", [for number, host in local.brokers : "${number + 1}@${host}:9093"])
    KAFKA_REPLICATION     = tostring(var.kafka.replication)
    KAFKA_MIN_ISR         = tostring(var.kafka.min_isr)
    KAFKA_RETENTION_HOURS = tostring(var.kafka.retention_hours)
  })

  # The way out, for its first boot.
  depends_on = [google_compute_router_nat.this]
}
