# What must be true of everything that is made, planned against a mocked provider: nothing is created, nothing is asked.

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
