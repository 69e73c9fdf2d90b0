# Each of these is refused before anything is planned, by a sentence that says what to do.

mock_provider "google" {
  override_during = plan
}

variables {
  project          = "my-project"
  raw_bucket       = "my-project-raw"
  parquet_bucket   = "my-project-parquet"
  operators        = ["user:someone@example.com"]
  partitions_start = "2026-12-01T00:00+0900"
}

run "a_project_by_its_name" {
  command = plan
  variables {
    project = "My Project"
  }
  expect_failures = [var.project]
}

run "zones_that_are_not_distinct" {
  command = plan
  variables {
    zones = ["asia-northeast3-a", "asia-northeast3-a", "asia-northeast3-c"]
  }
  expect_failures = [var.zones]
}

run "zones_of_another_region" {
  command = plan
  variables {
    zones = ["us-central1-a", "us-central1-b", "us-central1-c"]
  }
  expect_failures = [var.zones]
}

run "as_many_in_sync_as_there_are_replicas" {
  command = plan
  variables {
    kafka = { replication = 3, min_isr = 3 }
  }
  expect_failures = [var.kafka]
}

run "more_replicas_than_brokers" {
  command = plan
  variables {
    kafka = { replication = 4 }
  }
  expect_failures = [var.kafka]
}

run "one_bucket_for_both" {
  command = plan
  variables {
    parquet_bucket = "my-project-raw"
  }
  expect_failures = [var.parquet_bucket]
}

run "a_bucket_name_that_is_none" {
  command = plan
  variables {
    raw_bucket = "my-project-Bucket/orderbook"
  }
  expect_failures = [var.raw_bucket]
}

run "a_bucket_name_that_others_may_use" {
  command = plan
  variables {
    raw_bucket = "cryptostream-raw"
  }
  expect_failures = [var.raw_bucket]
}

run "another_bucket_name_that_others_may_use" {
  command = plan
  variables {
    parquet_bucket = "cryptostream-parquet"
  }
  expect_failures = [var.parquet_bucket]
}

run "the_default_name_of_the_other_bucket" {
  command = plan
  variables {
    raw_bucket     = "my-project-cryptostream-parquet"
    parquet_bucket = null
  }
  expect_failures = [var.parquet_bucket]
}

run "a_project_by_its_number" {
  command = plan
  variables {
    project = "123456789012"
  }
  expect_failures = [var.project]
}

run "one_replica" {
  command = plan
  variables {
    kafka = { replication = 1, min_isr = 1 }
  }
  expect_failures = [var.kafka]
}

run "a_setting_that_no_machine_reads" {
  command = plan
  variables {
    settings = { DEPTHS = "30" }
  }
  expect_failures = [var.settings]
}

run "a_setting_that_is_said_elsewhere" {
  command = plan
  variables {
    settings = { RAW_URL = "gs://somewhere/else" }
  }
  expect_failures = [var.settings]
}

run "books_of_a_depth_that_there_is_not" {
  command = plan
  variables {
    settings = { DEPTH = "20" }
  }
  expect_failures = [var.settings]
}

run "days_in_a_bucket_where_dagster_may_not_write" {
  command = plan
  variables {
    settings = { DAILY_URL = "gs://my-project-raw/days" }
  }
  expect_failures = [var.settings]
}

run "a_secret_among_the_settings" {
  command = plan
  variables {
    settings = { ALERT_WEBHOOK_URL = "https://hooks.example.com/secret" }
  }
  expect_failures = [var.settings]
}

run "a_region_by_its_city" {
  command = plan
  variables {
    region = "Seoul"
  }
  expect_failures = [var.region]
}

run "records_for_an_hour_only" {
  command = plan
  variables {
    kafka = { retention_hours = 1 }
  }
  expect_failures = [var.kafka]
}

run "disks_that_hold_nothing" {
  command = plan
  variables {
    kafka    = { disk_gb = 5 }
    pipeline = { disk_gb = 5 }
    dagster  = { disk_gb = 5 }
  }
  expect_failures = [var.kafka, var.pipeline, var.dagster]
}

run "an_address_that_is_none" {
  command = plan
  variables {
    alert_email = "me"
  }
  expect_failures = [var.alert_email]
}

run "nobody_to_operate_it" {
  command = plan
  variables {
    operators = []
  }
  expect_failures = [var.operators]
}

run "everybody_to_operate_it" {
  command = plan
  variables {
    operators = ["allUsers"]
  }
  expect_failures = [var.operators]
}

run "an_image_that_may_be_any" {
  command = plan
  variables {
    image_tag = "latest"
  }
  expect_failures = [var.image_tag]
}

run "a_first_window_beside_the_grid" {
  command = plan
  variables {
    partitions_start = "2026-12-01T00:03+0900"
  }
  expect_failures = [var.partitions_start]
}

run "raw_data_for_a_day_only" {
  command = plan
  variables {
    raw_days = 1
  }
  expect_failures = [var.raw_days]
}

run "a_conf_file_that_is_not_there" {
  command = plan
  variables {
    producer_conf = "nowhere.conf"
    consumer_conf = "nowhere.conf"
  }
  expect_failures = [var.producer_conf, var.consumer_conf]
}
