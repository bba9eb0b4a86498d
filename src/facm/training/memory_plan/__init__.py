"""How much memory and work a run would take on each GPU, before there is one."""

from facm.training.memory_plan.predict import Plan, plan
from facm.training.memory_plan.work import Work, work

__all__ = ["Plan", "Work", "plan", "work"]
