# What is off by default: each switch makes what it says, as it should be, and nothing else.

mock_provider "google" {
  source          = "./tests/google"
  override_during = plan
}

variables {
  project          = "my-project"
  raw_bucket       = "my-project-raw"
  parquet_bucket   = "my-project-parquet"
  operators        = ["user:someone@example.com"]
  partitions_start = "2026-12-01T00:00+0900"
}

run "switches_add_only_what_they_say" {
  command = plan

  assert {
    condition = (
      length(google_bigquery_dataset.this) == 0 && length(google_bigquery_job.orderbook) == 0 &&
      length(google_container_cluster.dagster) == 0 && length(google_service_account.nodes) == 0 &&
      length(google_compute_firewall.gke) == 0 && length(google_storage_bucket_iam_member.run_logs) == 0 && length(google_compute_subnetwork.this.secondary_ip_range) == 0 &&
      length(google_monitoring_alert_policy.absence) == 0 && length(google_monitoring_alert_policy.processor) == 0 &&
      length(google_monitoring_alert_policy.disks) == 0 &&
      !contains(keys(google_secret_manager_secret.this), "alert-webhook-url") && output.gke_values == null
    )
    error_message = "something that is off is made all the same"
  }

  assert {
    condition     = module.dagster.told.environment.COMPOSE_PROFILES == "dagster,monitoring"
    error_message = "Dagster runs nowhere"
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
    condition     = google_storage_bucket_iam_member.run_logs[0].bucket == "my-project-parquet" && google_storage_bucket_iam_member.run_logs[0].role == "roles/storage.legacyBucketReader" && google_storage_bucket_iam_member.run_logs[0].member == "serviceAccount:dagster@test.iam.gserviceaccount.com"
    error_message = "what keeps the runs' output may not look at its bucket, and no pod starts"
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
    condition     = module.dagster.told.environment.COMPOSE_PROFILES == "monitoring"
    error_message = "the machine's daemon and the cluster's both tick"
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
    producer_conf = "../ingest_services/conf/consumer.conf"
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

  assert {
    condition = (
      module.pipeline.told.environment.MOUNTED_FILES == substr(sha256(jsonencode({ for name in ["producer.conf", "consumer.conf"] : name => file("../ingest_services/conf/consumer.conf") })), 0, 16) &&
      alltrue([for node in module.kafka : node.told.environment.MOUNTED_FILES == substr(sha256("{}"), 0, 16)])
    )
    error_message = "producers go on with the conf file that was, or brokers are made anew for a file that they do not read"
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
