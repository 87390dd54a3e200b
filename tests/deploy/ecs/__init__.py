"""deploy/ecs, the CloudFormation templates, and what docs/deployment.md says of them."""
