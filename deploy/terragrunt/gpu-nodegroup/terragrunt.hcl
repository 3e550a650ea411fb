# A node group with GPUs for an EKS cluster that terraform-aws-eks 21 made. Label and taint are those that the models'
# charts know as platform.gpu: pods that ask for a GPU come here, all others stay away.
#
# Expects units ../eks (the module terraform-aws-modules/eks/aws) and ../vpc (terraform-aws-modules/vpc/aws) beside it,
# and a root.hcl above with the remote state and the provider. terragrunt run -- plan

include "root" {
  path = find_in_parent_folders("root.hcl")
}

terraform {
  source = "tfr:///terraform-aws-modules/eks/aws//modules/eks-managed-node-group?version=21.15.1"
}

dependency "eks" {
  config_path = "../eks"

  mock_outputs_allowed_terraform_commands = ["init", "validate", "plan"]
  mock_outputs = {
    cluster_name                      = "mock"
    cluster_version                   = "1.34"
    cluster_service_cidr              = "172.20.0.0/16"
    cluster_primary_security_group_id = "sg-00000000000000000"
    node_security_group_id            = "sg-00000000000000001"
  }
}

dependency "vpc" {
  config_path = "../vpc"

  mock_outputs_allowed_terraform_commands = ["init", "validate", "plan"]
  mock_outputs = {
    private_subnets = ["subnet-00000000000000000"]
  }
}

inputs = {
  # <cluster>-gpu exactly: it is what the charts expect with platform.gpu.nodeLabel eks.amazonaws.com/nodegroup.
  name            = "${dependency.eks.outputs.cluster_name}-gpu"
  use_name_prefix = false

  cluster_name                      = dependency.eks.outputs.cluster_name
  kubernetes_version                = dependency.eks.outputs.cluster_version
  cluster_service_cidr              = dependency.eks.outputs.cluster_service_cidr
  cluster_primary_security_group_id = dependency.eks.outputs.cluster_primary_security_group_id
  vpc_security_group_ids            = [dependency.eks.outputs.node_security_group_id]
  subnet_ids                        = dependency.vpc.outputs.private_subnets

  # Driver and container toolkit are in the image: gpu-operator runs without both (deploy/flux/controllers).
  ami_type       = "AL2023_x86_64_NVIDIA"
  instance_types = ["g6e.2xlarge"]
  capacity_type  = "ON_DEMAND"

  # The cluster autoscaler moves desired_size within these bounds; the module leaves it alone after the first time.
  min_size     = 0
  max_size     = 4
  desired_size = 1

  labels = {
    "node-group" = "gpu"
  }
  taints = {
    gpu = {
      key    = "nvidia.com/gpu"
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  # IMDSv2 alone, and one hop: pods get no credentials of the node. Give them EKS Pod Identity or IRSA.
  metadata_options = {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # Images of runtimes take 15 GB and more, models as much again: each pod downloads its own.
  block_device_mappings = {
    root = {
      device_name = "/dev/xvda"
      ebs = {
        volume_size           = 300
        volume_type           = "gp3"
        iops                  = 6000
        throughput            = 500
        encrypted             = true
        delete_on_termination = true
      }
    }
  }

  # GPUs are scarce: one node after the other.
  update_config = {
    max_unavailable = 1
  }

  tags = {
    "node-group" = "gpu"
  }
}
