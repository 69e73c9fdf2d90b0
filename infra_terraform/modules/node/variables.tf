variable "name" {
  description = "Name of the machine."
  type        = string
}

variable "zone" {
  description = "Where it is."
  type        = string
}

variable "machine_type" {
  description = "What it is."
  type        = string
}

variable "disk_gb" {
  description = "Size of its data disk, GB. It may grow, never shrink."
  type        = number
}

variable "subnetwork" {
  description = "Id of the subnetwork."
  type        = string
}

variable "service_account" {
  description = "E-mail of its service account."
  type        = string
}

variable "snapshot_policy" {
  description = "Name of the snapshot schedule of its data disk."
  type        = string
}

variable "compose_file" {
  description = "Which of docker/'s compose files it runs."
  type        = string
}

variable "files" {
  description = "What is put into /etc/cryptostream, by path below it."
  type        = map(string)
}

variable "environment" {
  description = "Its docker/.env; no secrets."
  type        = map(string)
}

variable "folders" {
  description = "Folders on the data disk, and the user that owns each."
  type        = map(number)
}

variable "secrets" {
  description = "Secrets that it reads, by file name: the secret's id, and whether this machine makes its first version."
  type        = map(object({ id = string, make = bool }))
  default     = {}
}

variable "environment_secrets" {
  description = "Secrets that go into docker/.env, by the variable's name: the secret's id. A person adds the version; until then the variable is not set."
  type        = map(string)
  default     = {}
}

variable "deletion_protection" {
  description = "Whether the machine refuses to be destroyed; its disk always does."
  type        = bool
}
