# What must be true of everything that is made, planned against a mocked provider: nothing is created, nothing is asked.

mock_provider "google" {
  override_during = plan

  mock_resource "google_service_account" {
    defaults = {
      email  = "role@test.iam.gserviceaccount.com"
      member = "serviceAccount:role@test.iam.gserviceaccount.com"
      name   = "projects/p/serviceAccounts/role@test.iam.gserviceaccount.com"
    }
  }

  mock_resource "google_compute_firewall" {
    defaults = {
      source_ranges = []
    }
  }
}

variables {
  project          = "my-project"
  raw_bucket       = "my-project-raw"
  parquet_bucket   = "my-project-parquet"
  operators        = ["user:someone@example.com"]
  partitions_start = "2026-12-01T00:00+0900"
}

run "no_machine_has_a_public_address" {
  command = plan

  assert {
    condition = alltrue([
      for node in concat(module.kafka, [module.pipeline, module.dagster]) :
      length(node.instance.network_interface) == 1 && length(node.instance.network_interface[0].access_config) == 0
    ])
    error_message = "a network interface has an access_config: a public address"
  }

  assert {
    condition     = google_compute_router_nat.this.source_subnetwork_ip_ranges_to_nat == "ALL_SUBNETWORKS_ALL_IP_RANGES"
    error_message = "without NAT nothing reaches the exchange"
  }

  assert {
    condition     = google_compute_subnetwork.this.private_ip_google_access
    error_message = "Google's APIs must be reached without a public address"
  }
}

run "the_internet_gets_in_through_iap_alone" {
  command = plan

  assert {
    condition     = google_compute_firewall.iap.source_ranges == toset(["35.235.240.0/20"])
    error_message = "SSH is open to more than Google's IAP"
  }

  assert {
    condition     = one(google_compute_firewall.iap.allow[*].ports) == tolist(["22"])
    error_message = "IAP reaches more than SSH"
  }

  assert {
    condition = alltrue([
      for rule in google_compute_firewall.flow :
      length(rule.source_ranges) == 0 && rule.source_tags == null && length(rule.source_service_accounts) > 0 && length(rule.target_service_accounts) == 1
    ])
    error_message = "a rule lets somebody in by address or tag, not by service account"
  }

  assert {
    condition = jsonencode({
      for name, rule in google_compute_firewall.flow : name => one(rule.allow[*].ports)
      }) == jsonencode({
      kafka-clients    = ["9092"]
      kafka-peers      = ["9092", "9093"]
      postgres         = ["5432"]
      pipeline-metrics = ["9101", "9102"]
    })
    error_message = "the flows between machines are not exactly those that the platform has"
  }
}

run "three_brokers_in_three_zones_know_how_often_a_record_is_kept" {
  command = plan

  assert {
    condition     = join(" ", [for node in module.kafka : node.instance.zone]) == "asia-northeast3-a asia-northeast3-b asia-northeast3-c"
    error_message = "the brokers are not in three zones"
  }

  assert {
    condition = alltrue([
      for number, node in module.kafka :
      node.told.environment.KAFKA_REPLICATION == "3" && node.told.environment.KAFKA_MIN_ISR == "2" &&
      node.told.environment.KAFKA_RACK == var.zones[number] && node.told.environment.KAFKA_NODE_ID == tostring(number + 1)
    ])
    error_message = "a broker's environment does not say 3 replicas, 2 in sync, its own zone and number"
  }

  assert {
    condition     = length(distinct([for node in module.kafka : node.told.environment.KAFKA_CLUSTER_ID])) == 1 && length(module.kafka[0].told.environment.KAFKA_CLUSTER_ID) == 22
    error_message = "the brokers must share one cluster id of 22 characters"
  }

  assert {
    condition = alltrue([
      for node in module.kafka : length(split(",", node.told.environment.KAFKA_QUORUM_VOTERS)) == 3
    ])
    error_message = "each broker must know all three voters"
  }

  assert {
    condition     = module.pipeline.told.environment.KAFKA_BOOTSTRAP == "cryptostream-kafka-1.asia-northeast3-a.c.my-project.internal:9092,cryptostream-kafka-2.asia-northeast3-b.c.my-project.internal:9092,cryptostream-kafka-3.asia-northeast3-c.c.my-project.internal:9092"
    error_message = "the pipeline does not know the three brokers"
  }
}

run "machines_are_shielded_and_their_data_is_kept" {
  command = plan

  assert {
    condition = alltrue([
      for node in concat(module.kafka, [module.pipeline, module.dagster]) :
      node.instance.deletion_protection &&
      node.instance.shielded_instance_config[0].enable_secure_boot &&
      node.instance.shielded_instance_config[0].enable_vtpm &&
      node.instance.shielded_instance_config[0].enable_integrity_monitoring &&
      node.instance.metadata["enable-oslogin"] == "TRUE" &&
      node.instance.metadata["block-project-ssh-keys"] == "TRUE"
    ])
    error_message = "a machine is not Shielded, not protected, or takes SSH keys of the project"
  }

  assert {
    condition = alltrue([
      for node in concat(module.kafka, [module.pipeline, module.dagster]) :
      node.instance.attached_disk[0].device_name == "data" && node.snapshots.name == "cryptostream-daily"
    ])
    error_message = "a machine's data disk is not attached by its id, or is not snapshotted"
  }

  assert {
    condition     = google_compute_resource_policy.daily.snapshot_schedule_policy[0].retention_policy[0].on_source_disk_delete == "KEEP_AUTO_SNAPSHOTS"
    error_message = "snapshots go with the disk"
  }
}

run "roles_are_exactly_these" {
  command = plan

  assert {
    condition = toset([for grant in google_project_iam_member.telemetry : grant.role]) == toset([
      "roles/logging.logWriter", "roles/monitoring.metricWriter",
    ])
    error_message = "a machine has a role on the whole project beyond logs and metrics"
  }

  assert {
    condition     = google_storage_bucket_iam_member.raw_create.role == "roles/storage.objectCreator" && length(google_storage_bucket_iam_member.raw_create.condition) == 0
    error_message = "the consumer must be able to create, and only that"
  }

  assert {
    condition     = toset(keys(google_storage_bucket_iam_member.raw_view)) == toset(["pipeline", "dagster"]) && alltrue([for grant in google_storage_bucket_iam_member.raw_view : grant.role == "roles/storage.objectViewer"])
    error_message = "pipeline and Dagster read the raw lake, and nobody else"
  }

  assert {
    condition     = google_storage_bucket_iam_member.raw_progress.condition[0].expression == "resource.name.startsWith(\"projects/_/buckets/my-project-raw/objects/orderbook/_progress/\")"
    error_message = "what may be overwritten is more than _progress/"
  }

  assert {
    condition     = google_storage_bucket_iam_member.parquet.bucket == "my-project-parquet" && google_storage_bucket_iam_member.parquet.role == "roles/storage.objectUser"
    error_message = "Dagster overwrites Parquet, and nothing else"
  }

  assert {
    condition = jsonencode({
      for name, grant in google_secret_manager_secret_iam_member.maker : name => grant.role
      }) == jsonencode({
      postgres-password       = "roles/secretmanager.secretVersionAdder"
      grafana-reader-password = "roles/secretmanager.secretVersionAdder"
      grafana-password        = "roles/secretmanager.secretVersionAdder"
    })
    error_message = "whoever makes a secret may add a version, and nothing more"
  }

  assert {
    condition     = alltrue([for grant in google_secret_manager_secret_iam_member.reader : grant.role == "roles/secretmanager.secretAccessor"])
    error_message = "a reader of a secret may do more than read"
  }

  assert {
    condition = toset([for grant in google_project_iam_member.operator : grant.role]) == toset([
      "roles/iap.tunnelResourceAccessor", "roles/compute.osAdminLogin",
    ])
    error_message = "an operator has other roles than a tunnel and a login"
  }
}

run "no_password_is_in_what_a_machine_is_told" {
  command = plan

  assert {
    condition = alltrue([
      for node in concat(module.kafka, [module.pipeline, module.dagster]) :
      alltrue([for name in keys(node.told.environment) : !strcontains(name, "PASSWORD")])
    ])
    error_message = "a password is in the metadata"
  }

  assert {
    condition     = module.pipeline.told.secrets.postgres_password.make && !module.dagster.told.secrets.postgres_password.make
    error_message = "the database's machine makes its password, and Dagster's waits for it"
  }

  assert {
    condition     = alltrue([for secret in google_secret_manager_secret.this : secret.deletion_protection])
    error_message = "a secret can be destroyed by accident"
  }
}

run "buckets_are_private_and_never_lose_a_commit" {
  command = plan

  assert {
    condition = alltrue([
      for bucket in [google_storage_bucket.raw, google_storage_bucket.parquet] :
      bucket.uniform_bucket_level_access && bucket.public_access_prevention == "enforced" && !bucket.force_destroy &&
      bucket.soft_delete_policy[0].retention_duration_seconds >= 7 * 24 * 3600
    ])
    error_message = "a bucket is open, can be emptied, or forgets at once"
  }

  assert {
    condition     = alltrue([for rule in google_storage_bucket.raw.lifecycle_rule : rule.action[0].type != "Delete"])
    error_message = "raw data is kept for ever unless somebody says otherwise"
  }
}

run "raw_data_expires_and_commits_do_not" {
  command = plan

  variables {
    raw_days = 90
  }

  assert {
    condition = jsonencode([
      for rule in google_storage_bucket.raw.lifecycle_rule : rule.condition[0].matches_prefix
      if rule.action[0].type == "Delete"
    ]) == jsonencode([["orderbook/ticker=", "orderbook/coverage/", "orderbook/quarantine/"]])
    error_message = "the rule that deletes must name data alone"
  }

  assert {
    condition     = module.dagster.told.environment.RAW_RETENTION_DAYS == "90"
    error_message = "Dagster must know from when on windows are frozen"
  }
}

run "switches_add_only_what_they_say" {
  command = plan

  assert {
    condition = (
      length(google_bigquery_dataset.this) == 0 && length(google_bigquery_table.orderbook) == 0 &&
      length(google_container_cluster.dagster) == 0 && length(google_monitoring_alert_policy.machine) == 0
    )
    error_message = "something that is off is made all the same"
  }

  assert {
    condition     = !contains(keys(google_project_service.this), "container.googleapis.com") && !contains(keys(google_project_service.this), "bigquery.googleapis.com")
    error_message = "a service is turned on for a switch that is off"
  }
}

run "bigquery_sees_the_parquet" {
  command = plan

  variables {
    bigquery = true
  }

  assert {
    condition     = google_bigquery_table.orderbook[0].external_data_configuration[0].source_uris == tolist(["gs://my-project-parquet/orderbook/ticker=*"])
    error_message = "the external table is not over the Parquet"
  }

  assert {
    condition     = length(google_container_cluster.dagster) == 0
    error_message = "BigQuery brings a cluster"
  }
}

run "gke_is_private" {
  command = plan

  variables {
    gke = true
  }

  assert {
    condition     = google_container_cluster.dagster[0].enable_autopilot && google_container_cluster.dagster[0].private_cluster_config[0].enable_private_nodes
    error_message = "the cluster must be Autopilot with private nodes"
  }

  assert {
    condition     = length(google_bigquery_dataset.this) == 0
    error_message = "GKE brings BigQuery"
  }
}

run "alarms_go_where_they_are_wanted" {
  command = plan

  variables {
    alert_email = "pager@example.com"
  }

  assert {
    condition     = length(google_monitoring_alert_policy.machine) == 2 && google_monitoring_notification_channel.email[0].labels.email_address == "pager@example.com"
    error_message = "two alarms, by e-mail"
  }
}
