"""Write rule.yaml, the operator's object, from the rules themselves: `python deploy/components/prometheus-operator/build.py`.

kustomize can put a file into a ConfigMap, but not into an object like this; a test holds the two together.
"""

from pathlib import Path

HERE = Path(__file__).parent
HEAD = """# Written by build.py from deploy/alerts/csm.rules.yaml: change that, then run it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: csm
  namespace: csm
spec:
"""


def main() -> None:
    rules = (HERE.parents[1] / "alerts/csm.rules.yaml").read_text()
    lines = [f"  {line}".rstrip() for line in rules.splitlines() if not line.startswith("#")]
    (HERE / "rule.yaml").write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
