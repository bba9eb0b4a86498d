"""How much memory a run would take on each GPU, before there is one."""

from facm.training.memory_plan.predict import Plan, plan

__all__ = ["Plan", "plan"]
