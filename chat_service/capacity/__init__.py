"""The model behind `chat capacity`: what a load needs, and what bends first."""
