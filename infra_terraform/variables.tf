# What a person chooses. Everything but the project, who operates it and the first window has a default.

variable "project" {
  description = "Id of the Google Cloud project."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project must be a project's id: 6 to 30 lower-case letters, digits and hyphens, beginning with a letter (not its name, not its number). `gcloud projects list` shows it."
  }
}

variable "region" {
  description = "Region of everything; asia-northeast3 is Seoul, where the exchange is."
  type        = string
  default     = "asia-northeast3"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region must be like asia-northeast3; `gcloud compute regions list` shows them."
  }
}

variable "zones" {
  description = "Three zones of the region, one for each broker; the other machines are in the first."
  type        = list(string)
  default     = ["asia-northeast3-a", "asia-northeast3-b", "asia-northeast3-c"]

  validation {
    condition     = length(var.zones) == 3 && length(distinct(var.zones)) == 3
    error_message = "zones must be three different zones: with two brokers in one zone, the loss of that zone stops the cluster."
  }

  validation {
    condition     = alltrue([for zone in var.zones : startswith(zone, "${var.region}-")])
    error_message = "zones must all be of the region that region names."
  }
}

# Names of buckets are shared by all of Google's customers, and whether one is in use only Google can say. Ids of
# projects are unique among them: a name that begins with ours is in use by nobody else.
variable "raw_bucket" {
  description = "Name for the bucket with the raw lake; null: PROJECT-cryptostream-raw."
  type        = string
  default     = null

  validation {
    condition     = var.raw_bucket == null || (can(regex("^[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]$", var.raw_bucket)) && try(startswith(var.raw_bucket, "${var.project}-"), false))
    error_message = "raw_bucket must be ${var.project}- and more lower-case letters, digits, hyphens and underscores, 63 at most. Another name may be in use by any of Google's customers; leave the variable out for ${var.project}-cryptostream-raw."
  }
}

variable "parquet_bucket" {
  description = "Name for the bucket with the Parquet; null: PROJECT-cryptostream-parquet."
  type        = string
  default     = null

  validation {
    condition     = var.parquet_bucket == null || (can(regex("^[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]$", var.parquet_bucket)) && try(startswith(var.parquet_bucket, "${var.project}-"), false))
    error_message = "parquet_bucket must be ${var.project}- and more lower-case letters, digits, hyphens and underscores, 63 at most. Another name may be in use by any of Google's customers; leave the variable out for ${var.project}-cryptostream-parquet."
  }

  validation {
    condition     = coalesce(var.parquet_bucket, "${var.project}-cryptostream-parquet") != coalesce(var.raw_bucket, "${var.project}-cryptostream-raw")
    error_message = "parquet_bucket must be another bucket than raw_bucket: whoever builds Parquet may overwrite, and nobody may overwrite raw data."
  }
}

variable "operators" {
  description = "Who may reach the machines and their user interfaces through IAP: user:…, group:…"
  type        = set(string)

  validation {
    condition     = length(var.operators) > 0 && alltrue([for who in var.operators : can(regex("^(user|group):[^@ ]+@[^@ ]+$", who))])
    error_message = "operators must name at least one user:somebody@example.com or group:team@example.com."
  }
}

variable "kafka" {
  description = "The brokers: machine type, disk (GB; each has every record, compressed: 250 for the whole exchange), replicas of a partition, how many must have a record before it counts, hours that records are kept."
  type = object({
    machine_type    = optional(string, "e2-medium")
    disk_gb         = optional(number, 100)
    replication     = optional(number, 3)
    min_isr         = optional(number, 2)
    retention_hours = optional(number, 72)
  })
  default = {}

  validation {
    condition     = var.kafka.disk_gb >= 10
    error_message = "kafka.disk_gb must be at least 10; a disk may grow later, never shrink."
  }

  validation {
    condition     = contains([2, 3], var.kafka.replication)
    error_message = "kafka.replication must be 3, or 2: there are three brokers, and with one replica the loss of a disk loses records."
  }

  validation {
    condition     = var.kafka.min_isr >= 1 && (var.kafka.min_isr < var.kafka.replication)
    error_message = "kafka.min_isr must be below kafka.replication, or the loss of one broker stops every producer; 2 of 3 is the safe choice."
  }

  validation {
    condition     = var.kafka.retention_hours >= 24
    error_message = "kafka.retention_hours must be at least 24: it is the time that a consumer has to come back before records are lost."
  }
}

variable "pipeline" {
  description = "The machine of producers, consumers and Postgres: type and disk (GB)."
  type = object({
    machine_type = optional(string, "e2-standard-4")
    disk_gb      = optional(number, 200)
  })
  default = {}

  validation {
    condition     = var.pipeline.disk_gb >= 10
    error_message = "pipeline.disk_gb must be at least 10; a disk may grow later, never shrink."
  }
}

variable "dagster" {
  description = "The machine of Dagster: type and disk (GB)."
  type = object({
    machine_type = optional(string, "e2-standard-2")
    disk_gb      = optional(number, 100)
  })
  default = {}

  validation {
    condition     = var.dagster.disk_gb >= 10
    error_message = "dagster.disk_gb must be at least 10; a disk may grow later, never shrink."
  }
}

variable "image_tag" {
  description = "Tag of the two images in the registry that this makes; every machine runs that one."
  type        = string
  default     = "v1"

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "image_tag must be a tag of a release, like v1; `latest` says nothing about what runs."
  }
}

variable "producer_conf" {
  description = "Path of producer.conf: who collects what."
  type        = string
  default     = "../ingest_services/conf/producer.conf"

  validation {
    condition     = fileexists(var.producer_conf)
    error_message = "producer_conf: there is no such file; the path is relative to infra_terraform/."
  }
}

variable "consumer_conf" {
  description = "Path of consumer.conf: who carries which partition."
  type        = string
  default     = "../ingest_services/conf/consumer.conf"

  validation {
    condition     = fileexists(var.consumer_conf)
    error_message = "consumer_conf: there is no such file; the path is relative to infra_terraform/."
  }
}

variable "partitions_start" {
  description = "First 5-minute window, market time; Dagster wants at most 100,000, a year has 105,120."
  type        = string

  validation {
    condition     = can(regex("^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-5][05][+-][0-9]{4}$", var.partitions_start))
    error_message = "partitions_start must be the start of a window, like 2026-12-01T00:00+0900."
  }
}

variable "raw_days" {
  description = "Days after which raw data objects are deleted; null keeps them for ever. Commits and chains are never deleted. RAW_RETENTION_DAYS follows it: windows are frozen a day before their data goes."
  type        = number
  default     = null

  validation {
    condition     = var.raw_days == null || try(var.raw_days >= 7, false)
    error_message = "raw_days must be at least 7: late data is still built into windows of the last days."
  }
}

variable "alert_email" {
  description = "Where alarms of the machines go; null sends none."
  type        = string
  default     = null

  validation {
    condition     = var.alert_email == null || can(regex("^[^@ ]+@[^@ ]+$", var.alert_email))
    error_message = "alert_email must be an address, or null."
  }
}

variable "settings" {
  description = "More of the README's settings for the pipeline's and Dagster's machines, by their names, like { DEPTH = \"30\" }."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(setsubtract(keys(var.settings), local.settable)) == 0
    error_message = "settings must name what the machines read and Terraform does not say itself, not ${join(", ", setsubtract(keys(var.settings), local.settable))}: ${join(", ", local.settable)}."
  }

  validation {
    condition     = contains(["1", "5", "15", "30"], lookup(var.settings, "DEPTH", "15"))
    error_message = "settings.DEPTH must be 1, 5, 15 or 30."
  }

  validation {
    condition     = startswith(lookup(var.settings, "DAILY_URL", "gs://${coalesce(var.parquet_bucket, "${var.project}-cryptostream-parquet")}/"), "gs://${coalesce(var.parquet_bucket, "${var.project}-cryptostream-parquet")}/")
    error_message = "settings.DAILY_URL must be in the bucket of the Parquet, gs://${coalesce(var.parquet_bucket, "${var.project}-cryptostream-parquet")}/…: Dagster may write nowhere else."
  }
}

variable "alert_webhook" {
  description = "Whether failed runs are told to a webhook (ALERT_WEBHOOK_URL). Its URL is the secret cryptostream-alert-webhook-url, whose version a person adds."
  type        = bool
  default     = false
}

variable "deletion_protection" {
  description = "Whether machines, secrets and the cluster refuse to be destroyed. Disks and buckets always do."
  type        = bool
  default     = true
}

variable "bigquery" {
  description = "Whether BigQuery sees the Parquet as an external table."
  type        = bool
  default     = false
}

variable "gke" {
  description = "Whether Dagster's runs get a GKE Autopilot cluster (docs/deploy-gke.md): for those who outgrow one machine."
  type        = bool
  default     = false
}
