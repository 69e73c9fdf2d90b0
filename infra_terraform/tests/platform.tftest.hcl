# What must be true of everything that is made, planned against a mocked provider: nothing is created, nothing is asked.

mock_provider "google" {
  override_during = plan

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
}

override_resource {
  target          = google_service_account.role["kafka"]
  override_during = plan
  values = {
    email  = "kafka@test.iam.gserviceaccount.com"
    member = "serviceAccount:kafka@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/kafka@test.iam.gserviceaccount.com"
  }
}

override_resource {
  target          = google_service_account.role["pipeline"]
  override_during = plan
  values = {
    email  = "pipeline@test.iam.gserviceaccount.com"
    member = "serviceAccount:pipeline@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/pipeline@test.iam.gserviceaccount.com"
  }
}

override_resource {
  target          = google_service_account.role["dagster"]
  override_during = plan
  values = {
    email  = "dagster@test.iam.gserviceaccount.com"
    member = "serviceAccount:dagster@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/dagster@test.iam.gserviceaccount.com"
  }
}

override_resource {
  target          = google_service_account.nodes
  override_during = plan
  values = {
    email  = "nodes@test.iam.gserviceaccount.com"
    member = "serviceAccount:nodes@test.iam.gserviceaccount.com"
    name   = "projects/p/serviceAccounts/nodes@test.iam.gserviceaccount.com"
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
      for name, rule in google_compute_firewall.flow : name =>
      "${join(" ", rule.source_service_accounts)} -> ${join(" ", rule.target_service_accounts)} ${join(" ", one(rule.allow[*].ports))}"
      }) == jsonencode({
      kafka-clients    = "pipeline@test.iam.gserviceaccount.com -> kafka@test.iam.gserviceaccount.com 9092"
      kafka-peers      = "kafka@test.iam.gserviceaccount.com -> kafka@test.iam.gserviceaccount.com 9092 9093"
      postgres         = "dagster@test.iam.gserviceaccount.com -> pipeline@test.iam.gserviceaccount.com 5432"
      pipeline-metrics = "dagster@test.iam.gserviceaccount.com -> pipeline@test.iam.gserviceaccount.com 9101 9102"
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
      for node in module.kafka : node.told.environment.KAFKA_QUORUM_VOTERS == "1@cryptostream-kafka-1.asia-northeast3-a.c.my-project.internal:9093,2@cryptostream-kafka-2.asia-northeast3-b.c.my-project.internal:9093,3@cryptostream-kafka-3.asia-northeast3-c.c.my-project.internal:9093"
    ])
    error_message = "each broker must know all three voters by names that stay"
  }

  assert {
    condition     = alltrue([for number, node in module.kafka : node.told.environment.KAFKA_HOST == "cryptostream-kafka-${number + 1}.${var.zones[number]}.c.my-project.internal" && node.name == "cryptostream-kafka-${number + 1}"])
    error_message = "a broker tells its clients another name than its machine's"
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
    condition = (
      google_compute_resource_policy.daily.snapshot_schedule_policy[0].retention_policy[0].on_source_disk_delete == "KEEP_AUTO_SNAPSHOTS" &&
      google_compute_resource_policy.daily.snapshot_schedule_policy[0].retention_policy[0].max_retention_days >= 14 &&
      google_compute_resource_policy.daily.snapshot_schedule_policy[0].schedule[0].daily_schedule[0].days_in_cycle == 1
    )
    error_message = "snapshots are not made every day and kept for two weeks, or go with the disk"
  }

  assert {
    condition = alltrue([
      for node in concat(module.kafka, [module.pipeline, module.dagster]) : node.snapshots.disk == "${node.name}-data"
    ])
    error_message = "the schedule is another disk's"
  }

  assert {
    condition = alltrue([
      for node in concat(module.kafka, [module.pipeline, module.dagster]) : node.instance.network_interface[0].network_ip == node.address
    ])
    error_message = "a machine that is made anew has another address"
  }

  assert {
    condition     = module.dagster.told.environment.POSTGRES_HOST == module.pipeline.address && module.dagster.told.environment.PIPELINE_ADDRESS == module.pipeline.address
    error_message = "Dagster does not know where Postgres is"
  }
}

run "roles_are_exactly_these" {
  command = plan

  assert {
    condition     = toset([for grant in google_project_iam_member.log : grant.role]) == toset(["roles/logging.logWriter"])
    error_message = "a machine has a role on the whole project beyond its log"
  }

  assert {
    condition     = google_storage_bucket_iam_member.raw_create.bucket == "my-project-raw" && google_storage_bucket_iam_member.raw_create.role == "roles/storage.objectCreator" && google_storage_bucket_iam_member.raw_create.member == "serviceAccount:pipeline@test.iam.gserviceaccount.com" && length(google_storage_bucket_iam_member.raw_create.condition) == 0
    error_message = "the consumer must be able to create, and only that"
  }

  assert {
    condition     = toset(keys(google_storage_bucket_iam_member.raw_view)) == toset(["pipeline", "dagster"]) && alltrue([for role, grant in google_storage_bucket_iam_member.raw_view : grant.bucket == "my-project-raw" && grant.role == "roles/storage.objectViewer" && grant.member == "serviceAccount:${role}@test.iam.gserviceaccount.com"])
    error_message = "pipeline and Dagster read the raw lake, and nobody else"
  }

  assert {
    condition     = google_storage_bucket_iam_member.raw_progress.role == "roles/storage.objectUser" && google_storage_bucket_iam_member.raw_progress.member == "serviceAccount:pipeline@test.iam.gserviceaccount.com" && one(google_storage_bucket_iam_member.raw_progress.condition[*].expression) == "resource.name.startsWith(\"projects/_/buckets/my-project-raw/objects/orderbook/_progress/\")"
    error_message = "what may be overwritten is more than _progress/"
  }

  assert {
    condition     = google_storage_bucket_iam_member.parquet.bucket == "my-project-parquet" && google_storage_bucket_iam_member.parquet.role == "roles/storage.objectUser" && google_storage_bucket_iam_member.parquet.member == "serviceAccount:dagster@test.iam.gserviceaccount.com"
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
    condition = toset([for name, grant in google_secret_manager_secret_iam_member.reader : "${name}: ${grant.member}"]) == toset([
      "grafana-password dagster: serviceAccount:dagster@test.iam.gserviceaccount.com",
      "grafana-reader-password dagster: serviceAccount:dagster@test.iam.gserviceaccount.com",
      "grafana-reader-password pipeline: serviceAccount:pipeline@test.iam.gserviceaccount.com",
      "postgres-password dagster: serviceAccount:dagster@test.iam.gserviceaccount.com",
      "postgres-password pipeline: serviceAccount:pipeline@test.iam.gserviceaccount.com",
    ])
    error_message = "a password is read by others than those who need it"
  }

  assert {
    condition = toset([for grant in google_artifact_registry_repository_iam_member.pull : "${grant.role} ${grant.member}"]) == toset([
      "roles/artifactregistry.reader serviceAccount:dagster@test.iam.gserviceaccount.com",
      "roles/artifactregistry.reader serviceAccount:pipeline@test.iam.gserviceaccount.com",
    ])
    error_message = "images are for two machines to pull, and for nobody there to push"
  }

  assert {
    condition     = alltrue([for grant in google_service_account_iam_member.operator : grant.role == "roles/iam.serviceAccountUser" && grant.member == "user:someone@example.com"])
    error_message = "an operator may do more with a service account than log in on its machine"
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

run "buckets_have_names_that_nobody_else_has" {
  command = plan

  variables {
    raw_bucket     = null
    parquet_bucket = null
  }

  assert {
    condition     = google_storage_bucket.raw.name == "my-project-cryptostream-raw" && google_storage_bucket.parquet.name == "my-project-cryptostream-parquet"
    error_message = "a bucket's name does not begin with the project's id"
  }

  assert {
    condition     = strcontains(google_storage_bucket_iam_member.raw_progress.condition[0].expression, "/my-project-cryptostream-raw/")
    error_message = "the condition is of another bucket"
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
    condition = alltrue([
      for rule in google_storage_bucket.raw.lifecycle_rule : contains(["Delete", "AbortIncompleteMultipartUpload"], rule.action[0].type)
    ])
    error_message = "a rule does something else to raw data than to let it expire"
  }

  assert {
    condition = one([
      for rule in google_storage_bucket.raw.lifecycle_rule : rule.condition[0].age if rule.action[0].type == "Delete"
    ]) == 91
    error_message = "data must go a day after its windows are frozen, not before"
  }

  assert {
    condition     = alltrue([for rule in google_storage_bucket.parquet.lifecycle_rule : rule.action[0].type != "Delete"])
    error_message = "Parquet is kept for ever"
  }

  assert {
    condition     = lookup(module.dagster.told.environment, "RAW_RETENTION_DAYS", "") == "90"
    error_message = "Dagster must know from when on windows are frozen"
  }
}

run "switches_add_only_what_they_say" {
  command = plan

  assert {
    condition = (
      length(google_bigquery_dataset.this) == 0 && length(google_bigquery_job.orderbook) == 0 &&
      length(google_container_cluster.dagster) == 0 && length(google_service_account.nodes) == 0 &&
      length(google_compute_firewall.gke) == 0 && length(google_compute_subnetwork.this.secondary_ip_range) == 0 &&
      length(google_monitoring_alert_policy.absence) == 0 && length(google_monitoring_alert_policy.processor) == 0 &&
      length(google_monitoring_alert_policy.disks) == 0 &&
      !contains(keys(google_secret_manager_secret.this), "alert-webhook-url") && output.gke_values == null
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
    condition = alltrue([
      for line in [
        "uris = ['gs://my-project-parquet/orderbook/ticker=*']",
        "hive_partition_uri_prefix = 'gs://my-project-parquet/orderbook'",
        "EXTERNAL TABLE `my-project.cryptostream.orderbook`",
        "`bid_size15` FLOAT64",
      ] : strcontains(google_bigquery_job.orderbook[0].query[0].query, line)
    ])
    error_message = "the external table is not over the Parquet"
  }

  assert {
    condition     = !strcontains(google_bigquery_job.orderbook[0].query[0].query, "bid_size16")
    error_message = "the external table has more levels than are collected"
  }

  assert {
    condition     = !google_bigquery_job.orderbook[0].query[0].use_legacy_sql && google_bigquery_job.orderbook[0].query[0].write_disposition == "" && google_bigquery_job.orderbook[0].query[0].create_disposition == ""
    error_message = "a statement that makes a table must not be asked to write a result"
  }

  assert {
    condition     = length(google_container_cluster.dagster) == 0
    error_message = "BigQuery brings a cluster"
  }
}

run "gke_is_private_and_its_pods_reach_postgres_and_no_more" {
  command = plan

  variables {
    gke      = true
    raw_days = 90
    settings = { DEPTH = "30" }
  }

  assert {
    condition     = google_container_cluster.dagster[0].enable_autopilot && google_container_cluster.dagster[0].private_cluster_config[0].enable_private_nodes
    error_message = "the cluster must be Autopilot with private nodes"
  }

  assert {
    condition     = !google_container_cluster.dagster[0].control_plane_endpoints_config[0].ip_endpoints_config[0].enabled
    error_message = "the cluster's API has an address"
  }

  assert {
    condition = (
      google_compute_firewall.gke[0].source_ranges == toset(["10.21.0.0/17"]) &&
      one(google_compute_firewall.gke[0].allow[*].ports) == tolist(["5432"]) &&
      google_compute_firewall.gke[0].target_service_accounts == toset(["pipeline@test.iam.gserviceaccount.com"]) &&
      { for range in google_compute_subnetwork.this.secondary_ip_range : range.range_name => range.ip_cidr_range }["pods"] == "10.21.0.0/17" &&
      google_container_cluster.dagster[0].ip_allocation_policy[0].cluster_secondary_range_name == "pods"
    )
    error_message = "pods must reach Postgres, from their own range, and nothing else"
  }

  assert {
    condition     = google_container_cluster.dagster[0].cluster_autoscaling[0].auto_provisioning_defaults[0].service_account == google_service_account.nodes[0].email && google_project_iam_member.nodes[0].role == "roles/container.defaultNodeServiceAccount" && google_artifact_registry_repository_iam_member.nodes[0].role == "roles/artifactregistry.reader"
    error_message = "nodes run as an account that may do more than nodes need"
  }

  assert {
    condition     = google_service_account_iam_member.gke[0].member == "serviceAccount:my-project.svc.id.goog[dagster/dagster]"
    error_message = "pods do not act as Dagster's service account"
  }

  assert {
    condition = (
      yamldecode(output.gke_values).serviceAccount.annotations["iam.gke.io/gcp-service-account"] == "dagster@test.iam.gserviceaccount.com" &&
      yamldecode(output.gke_values).global.serviceAccountName == "dagster" &&
      yamldecode(output.gke_values)["dagster-user-deployments"].deployments[0].image == {
        repository = "asia-northeast3-docker.pkg.dev/my-project/cryptostream/dagster", tag = "v1", pullPolicy = "IfNotPresent"
      } &&
      { for entry in yamldecode(output.gke_values)["dagster-user-deployments"].deployments[0].env : entry.name => entry.value } == {
        DEPTH              = "30"
        MARKET_TIME_ZONE   = "Asia/Seoul"
        PARQUET_URL        = "gs://my-project-parquet/orderbook"
        PARTITIONS_START   = "2026-12-01T00:00+0900"
        POSTGRES_DB        = "cryptostream"
        POSTGRES_HOST      = "10.20.0.5"
        POSTGRES_USER      = "cryptostream"
        RAW_RETENTION_DAYS = "90"
        RAW_URL            = "gs://my-project-raw/orderbook"
        SOURCE             = "upbit"
      }
    )
    error_message = "the chart's values do not say where everything is"
  }

  assert {
    condition     = length(google_bigquery_dataset.this) == 0
    error_message = "GKE brings BigQuery"
  }
}

run "settings_reach_the_machines_that_read_them" {
  command = plan

  variables {
    settings      = { DEPTH = "30", DAILY_URL = "gs://my-project-parquet/days" }
    alert_webhook = true
    producer_conf = "../ingest_services/conf/producer.conf"
  }

  assert {
    condition = alltrue([
      for node in [module.pipeline, module.dagster] :
      lookup(node.told.environment, "DEPTH", "") == "30" && lookup(node.told.environment, "DAILY_URL", "") == "gs://my-project-parquet/days"
    ])
    error_message = "a setting does not reach the pipeline and Dagster"
  }

  assert {
    condition     = module.dagster.told.environment_secrets == tomap({ ALERT_WEBHOOK_URL = "cryptostream-alert-webhook-url" }) && length(module.pipeline.told.environment_secrets) == 0
    error_message = "Dagster's machine does not know where the webhook's URL is"
  }

  assert {
    condition     = !contains(keys(google_secret_manager_secret_iam_member.maker), "alert-webhook-url") && google_secret_manager_secret_iam_member.reader["alert-webhook-url dagster"].role == "roles/secretmanager.secretAccessor"
    error_message = "the webhook's URL is a person's to say and Dagster's to read"
  }
}

run "alarms_go_where_they_are_wanted" {
  command = plan

  variables {
    alert_email = "pager@example.com"
  }

  assert {
    condition = toset(keys(google_monitoring_alert_policy.absence)) == toset([
      "a machine is down", "nothing reaches the raw lake", "no window is built",
    ])
    error_message = "an alarm is missing"
  }

  assert {
    condition = (
      strcontains(google_monitoring_alert_policy.absence["nothing reaches the raw lake"].conditions[0].condition_absent[0].filter, "bucket_name=\"my-project-raw\"") &&
      strcontains(google_monitoring_alert_policy.absence["no window is built"].conditions[0].condition_absent[0].filter, "bucket_name=\"my-project-parquet\"")
    )
    error_message = "an alarm looks at another bucket"
  }

  assert {
    condition     = google_monitoring_alert_policy.disks[0].conditions[0].condition_matched_log[0].filter == "logName=\"projects/my-project/logs/cryptostream-disks\" AND severity>=WARNING"
    error_message = "a disk that fills raises no alarm"
  }

  assert {
    condition = alltrue([
      for policy in concat(values(google_monitoring_alert_policy.absence), google_monitoring_alert_policy.processor, google_monitoring_alert_policy.disks) :
      length(policy.notification_channels) == 1 && length(policy.documentation[0].content) > 20
    ]) && google_monitoring_notification_channel.email[0].labels.email_address == "pager@example.com"
    error_message = "an alarm goes nowhere, or does not say what to do"
  }
}
