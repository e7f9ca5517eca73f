"""The files of deploy/, offline: against Ray's schema and autoscaler, KubeRay's field names, and one another."""

import copy
import json
import re
import shlex
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import click
import jsonschema
import pytest
import ray.autoscaler
import yaml
from mlflow.cli import server as mlflow_server
from mlflow.server.security_utils import is_allowed_host_header
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from sweeps.command_line.compute_options import resolved_gpus
from sweeps.execution.ray_environment import RAY_ENVIRONMENT
from sweeps.execution.tune_run import _TrialSetup
from sweeps.size_grid import main as size_grid

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kuberay").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAD = "node:__internal_head__"


def cluster_config() -> dict:
    return yaml.safe_load((DEPLOY / "cluster.yaml").read_text())


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def objects(kind: str) -> dict[str, dict]:
    """All objects of a kind in deploy/kuberay, by name."""
    found = [document for path in MANIFESTS for document in documents(path) if document["kind"] == kind]
    return {document["metadata"]["name"]: document for document in found}


def ray_job() -> dict:
    return objects("RayJob")["fine-sweeps"]


def ray_cluster() -> dict:
    return objects("RayCluster")["fine-sweeps"]


def pod_templates() -> dict[str, dict]:
    spec = ray_cluster()["spec"]
    groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"]} | groups


def mlflow_template() -> dict:
    return objects("Deployment")["fine-sweeps-mlflow"]["spec"]["template"]


def container(template: dict) -> dict:
    (only,) = template["spec"]["containers"]
    return only


def head_environment() -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container(pod_templates()["head"])["env"]}


def parsed(command: click.Command, arguments: list[str]) -> dict:
    """The options of a command line; an unknown or malformed one raises click.UsageError."""
    return command.make_context(command.name, list(arguments)).params


def commands(text: str, program: str) -> list[list[str]]:
    """The arguments of every call of `program`, with whatever folder before it, in a shell text."""
    calls = re.findall(rf"(?<!\S)(?:\S*/)?{re.escape(program)} ([^\n;&|>]*)", text.replace("\\\n", " "))
    return [shlex.split(call) for call in calls]


def aws_start_command(role: str) -> str:
    return "\n".join(cluster_config()[f"{role}_start_ray_commands"])


# --- Ray's cluster launcher


def check_cluster_config(config: dict) -> dict:
    """What `ray up` checks before it reaches AWS."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_the_cluster_config_is_one_that_ray_accepts():
    prepared = check_cluster_config(cluster_config())
    head = prepared["head_node_type"]
    workers = {name: kind for name, kind in prepared["available_node_types"].items() if name != head}
    assert all(kind["min_workers"] == 0 and kind["max_workers"] > 0 for kind in workers.values())
    assert prepared["max_workers"] == sum(kind["max_workers"] for kind in workers.values())


@pytest.mark.parametrize(
    ("path", "typo"), [((), "max_workerz"), (("available_node_types", "gpu-spot"), "min_worker"), (("auth",), "user")]
)
def test_a_typo_in_the_cluster_config_is_found(path, typo):
    config = cluster_config()
    place = config
    for key in path:
        place = place[key]
    place[typo] = 1
    with pytest.raises(jsonschema.ValidationError, match=typo):
        check_cluster_config(config)


def test_on_aws_only_workers_are_spot_and_all_nodes_have_the_same_image():
    config = cluster_config()
    types = config["available_node_types"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == set(types) - {config["head_node_type"]}
    assert all(types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for name in spot)
    assert len({kind["node_config"]["ImageId"] for kind in types.values()}) == 1


def test_nodes_get_what_the_installation_needs_and_nothing_else():
    mounts = cluster_config()["file_mounts"]
    token = mounts.pop("/home/ubuntu/.ray/auth_token")
    assert token == "~/.ray/auth_token"
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    files = {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert set(mounts.values()) == packages | files
    for remote, local in mounts.items():
        assert remote == f"/home/ubuntu/fine-sweeps/{local}" and (ROOT / local).exists()


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_starts_with_options_that_it_has_and_with_token_authentication(role):
    command = aws_start_command(role)
    (arguments,) = commands(command, "ray start")
    options = parsed(ray_start, arguments)
    assert "export RAY_AUTH_MODE=token" in command and command.index("RAY_AUTH_MODE") < command.index("ray start")
    assert options["head"] == (role == "head")
    if role == "head":
        assert options["dashboard_host"] == "127.0.0.1" and options["autoscaling_config"] == "~/ray_bootstrap_config.yaml"


def test_on_aws_the_sweep_reaches_mlflow_on_loopback():
    command = aws_start_command("head")
    (arguments,) = commands(command, "mlflow server")
    options = parsed(mlflow_server, arguments)
    uri = urlsplit(re.search(r"MLFLOW_TRACKING_URI=(\S+?);?\s", command)[1])
    assert (uri.hostname, uri.port) == (options["host"], options["port"]) == ("127.0.0.1", 5000)
    assert command.index("MLFLOW_TRACKING_URI") < command.index("ray start")
    check_allowed_hosts(options["allowed_hosts"], [uri.netloc, "localhost:5000"])
    assert options["artifacts_destination"].startswith("s3://") and options["backend_store_uri"].startswith("sqlite:////")


def check_allowed_hosts(allowed: str, needed: list[str]) -> None:
    for host in needed:
        assert is_allowed_host_header(allowed.split(","), host), host
    for host in ("evil.example.com", "evil.example.com:5000", "10.1.2.3:5000"):
        assert not is_allowed_host_header(allowed.split(","), host), host


# --- KubeRay


def closed(required: str = "", **properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


TEXT, NATURAL, FLAG, ANY = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}, {}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = closed(
    "spec",
    metadata=closed(labels=TEXTS),
    spec=closed(
        "containers restartPolicy",
        containers={
            "type": "array",
            "items": closed(
                "name image resources",
                name=TEXT,
                image=TEXT,
                env={"type": "array", "items": closed("name value", name=TEXT, value=TEXT)},
                resources=closed("limits", requests=TEXTS, limits=TEXTS),
                securityContext=ANY,
                volumeMounts={"type": "array", "items": closed("name mountPath", name=TEXT, mountPath=TEXT)},
            ),
        },
        restartPolicy={"const": "Never"},  # autoscaler v2: KubeRay refuses any other
        affinity=ANY,
        tolerations=ANY,
        securityContext=ANY,
        automountServiceAccountToken=FLAG,
        volumes=ANY,
    ),
)
# The fields that the manifests use, by name and type as in KubeRay's API reference: the operator's own schemas are not
# in Ray's package. An unknown name is an error, so that a typo is found here.
RAY_CLUSTER_SPEC = closed(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=NATURAL),
    authOptions=closed(mode={"enum": ["disabled", "token"]}),
    headGroupSpec=closed("rayStartParams template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=NATURAL,
            minReplicas=NATURAL,
            maxReplicas=NATURAL,
            rayStartParams=TEXTS,
            template=POD,
        ),
    },
)
RAY_JOB_SPEC = closed(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NATURAL,
    backoffLimit=NATURAL,
    rayClusterSpec=RAY_CLUSTER_SPEC,
)
CUSTOM_RESOURCES = {"RayJob": RAY_JOB_SPEC, "RayCluster": RAY_CLUSTER_SPEC}


def check_custom_resource(document: dict) -> None:
    resource = closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind=TEXT,
        metadata=closed("name", name={"type": "string", "pattern": "^[a-z][a-z0-9-]{0,46}$"}),
        spec=CUSTOM_RESOURCES[document["kind"]],
    )
    jsonschema.validate(document, resource)


@pytest.mark.parametrize("manifest", [ray_job, ray_cluster])
def test_custom_resources_have_only_fields_that_kuberay_knows(manifest):
    check_custom_resource(manifest())


@pytest.mark.parametrize(
    ("path", "typo"),
    [
        (("spec",), "submissionmode"),
        (("spec", "rayClusterSpec"), "enableIntreeAutoscaling"),
        (("spec", "rayClusterSpec", "autoscalerOptions"), "idleTimeoutMinutes"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0), "maxReplica"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0), "volumemounts"),
    ],
)
def test_a_typo_in_a_manifest_is_found(path, typo):
    document = ray_job()
    place = document
    for key in path:
        place = place[key]
    place[typo] = 1
    with pytest.raises(jsonschema.ValidationError, match=typo):
        check_custom_resource(document)


def test_the_job_and_the_standing_cluster_are_the_same_cluster():
    assert ray_job()["spec"]["rayClusterSpec"] == ray_cluster()["spec"]


def kuberay_config() -> dict:
    """The autoscaler's view of the cluster, from Ray's own reading of the manifest; it ends with validate_config."""
    resource = {"metadata": {"name": "fine-sweeps", "namespace": "default"}, "spec": ray_cluster()["spec"]}
    return _derive_autoscaling_config_from_ray_cr(resource)


def test_rays_autoscaler_reads_the_manifest():
    config = kuberay_config()
    validate_config(config)
    types = config["available_node_types"]
    assert {name: (kind["min_workers"], kind["max_workers"]) for name, kind in types.items()} == {
        "headgroup": (0, 0),
        "gpu-spot": (0, 8),
        "cpu-spot": (0, 4),
    }
    assert config["idle_timeout_minutes"] == 10


def test_what_the_operator_asks_for_beyond_its_schema():
    job, cluster = ray_job()["spec"], ray_cluster()["spec"]
    assert job["shutdownAfterJobFinishes"] or not job["ttlSecondsAfterFinished"]
    assert cluster["authOptions"]["mode"] == "token"
    installed = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert str(cluster["rayVersion"]) == installed
    assert tuple(map(int, installed.split(".")[:2])) >= (2, 52)  # the first with token authentication


def admits(template: dict, labels: dict[str, str]) -> bool:
    """Whether a pod's node affinity lets it on a node with these labels."""
    required = template["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms = [term["matchExpressions"] for term in required["nodeSelectorTerms"]]
    return any(
        all((labels.get(e["key"]) in e["values"]) == {"In": True, "NotIn": False}[e["operator"]] for e in term)
        for term in terms
    )


def test_on_kubernetes_the_head_takes_no_spot_node_and_workers_take_no_other():
    templates = pod_templates()
    for key, spot, on_demand in [
        ("karpenter.sh/capacity-type", "spot", "on-demand"),
        ("eks.amazonaws.com/capacityType", "SPOT", "ON_DEMAND"),
        ("cloud.google.com/gke-spot", "true", None),
        ("kubernetes.azure.com/scalesetpriority", "spot", None),
    ]:
        safe = {key: on_demand} if on_demand else {}
        for name, template in templates.items():
            assert admits(template, {key: spot}) == (name != "head"), (name, key)
            assert admits(template, safe) == (name == "head"), (name, key)


# --- both: resources, names and commands


@pytest.fixture(params=["aws", "kuberay"])
def node_types(request) -> tuple[dict, dict[str, dict]]:
    """Resources of the head, and {name: node type} of the workers."""
    config = check_cluster_config(cluster_config()) if request.param == "aws" else kuberay_config()
    types = dict(config["available_node_types"])
    return types.pop(config["head_node_type"])["resources"] | {HEAD: 1}, types


def fits(demand: dict[str, float], resources: dict[str, float]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in demand.items())


def launched(workers: dict[str, dict], demands: list[dict[str, float]]) -> dict[str, int]:
    """The nodes that Ray's autoscaler starts for demands that cannot be held yet."""
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    nodes, unmet = get_nodes_for(workers, {}, "no-head", 100, demands, scorer)
    assert not unmet
    return dict(nodes)


def test_the_head_holds_drivers_and_the_autoscaler_starts_workers_for_everything_else(node_types):
    head, workers = node_types
    (driver,) = _TrialSetup.resources.fget(SimpleNamespace(group_size=1, gpus_per_worker=1, cpus_per_worker=1)).bundles
    (inline,) = _TrialSetup.resources.fget(SimpleNamespace(group_size=0, gpus_per_worker=0, cpus_per_worker=1)).bundles
    (on_gpu,) = _TrialSetup.resources.fget(SimpleNamespace(group_size=0, gpus_per_worker=0.5, cpus_per_worker=1)).bundles
    assert fits(driver, head) and not any(fits(driver, kind["resources"]) for kind in workers.values())
    assert not fits(inline, head)
    assert launched(workers, [inline]) == {"cpu-spot": 1}
    assert launched(workers, [on_gpu] * 4) == {"gpu-spot": 2}
    # trainables/worker.py: a worker of a group takes one CPU and its GPUs
    assert launched(workers, [{"CPU": 1, "GPU": 1}] * 4) == {"gpu-spot": 4}
    assert launched(workers, [{"CPU": 1, "GPU": 0.25}] * 8) == {"gpu-spot": 2}


def test_the_commands_are_the_sweeps_own_and_their_trials_find_nodes(node_types):
    _, workers = node_types
    lines = commands(f"{ray_job()['spec']['entrypoint']}\n{(DEPLOY / 'README.md').read_text()}", "size_grid.py")
    assert len(lines) == 3
    for line in lines:
        options = parsed(size_grid, line)
        gpus = resolved_gpus(options["gpus_per_worker"])
        room = workers["gpu-spot"]["max_workers"] * workers["gpu-spot"]["resources"]["GPU"]
        assert gpus > 0 and options["workers_per_trial"] * gpus <= room
        assert options["source_workers"] * gpus <= room and options["batch_size"] % options["source_workers"] == 0


def test_worker_groups_wait_long_enough_for_new_nodes():
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
    from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR as name

    assert name in ENV_VARS_TO_PROPAGATE
    assert int(RAY_ENVIRONMENT[name]) > 100 * 3600, "also for others' trainings, on a cluster that has grown as far as it can"


def test_all_nodes_share_the_volume_of_the_results():
    claims = objects("PersistentVolumeClaim")
    for name, template in pod_templates().items():
        volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in template["spec"]["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container(template)["volumeMounts"]}
        assert claims[mounted["/shared"]]["spec"]["accessModes"] == ["ReadWriteMany"], name
    options = parsed(size_grid, shlex.split(ray_job()["spec"]["entrypoint"])[2:])
    assert options["storage_path"].startswith("/shared/")


def test_the_job_runs_a_file_of_the_image_and_all_pods_have_that_image():
    program, script = shlex.split(ray_job()["spec"]["entrypoint"])[:2]
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    folder = re.search(r"^WORKDIR (\S+)$", dockerfile, re.MULTILINE)[1]
    assert program == "python" and (ROOT / Path(script).relative_to(folder)).is_file()
    images = {container(template)["image"] for template in [*pod_templates().values(), mlflow_template()]}
    assert len(images) == 1 and f"-t {images.pop()} " in dockerfile


def test_the_image_is_built_from_what_the_installation_needs():
    copied = [line.split()[1:-1] for line in (DEPLOY / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    sources = {source for line in copied for source in line}
    assert sources == set(cluster_config()["file_mounts"].values()) - {"~/.ray/auth_token"}
    ignore = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignore[0] == "*" and {line[1:] for line in ignore if line.startswith("!")} == sources
    assert "-c constraints.txt -e ." in (DEPLOY / "Dockerfile").read_text()


def test_mlflow_answers_under_the_uri_that_the_job_is_given():
    (service,) = objects("Service").values()
    (policy,) = objects("NetworkPolicy").values()
    (port,) = service["spec"]["ports"]
    template, pod = mlflow_template(), container(mlflow_template())
    uri = urlsplit(head_environment()["MLFLOW_TRACKING_URI"])
    assert (uri.hostname, uri.port) == (service["metadata"]["name"], port["port"])

    options = parsed(mlflow_server, pod["args"])
    assert pod["command"] == ["mlflow", "server"]
    assert {p["name"]: p["containerPort"] for p in pod["ports"]}[port["targetPort"]] == options["port"]
    check_allowed_hosts(options["allowed_hosts"], [uri.netloc, uri.hostname, "localhost:5000"])
    (volume,) = template["spec"]["volumes"]
    (mount,) = pod["volumeMounts"]
    assert volume["name"] == mount["name"] and volume["persistentVolumeClaim"]["claimName"] in objects("PersistentVolumeClaim")
    assert options["backend_store_uri"].startswith(f"sqlite:///{mount['mountPath']}/")
    assert options["artifacts_destination"].startswith(f"{mount['mountPath']}/")

    labels = template["metadata"]["labels"]
    for selector in (service["spec"]["selector"], policy["spec"]["podSelector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    (rule,) = policy["spec"]["ingress"]
    (peer,) = rule["from"]
    assert policy["spec"]["policyTypes"] == ["Ingress"] and rule["ports"] == [{"protocol": "TCP", "port": options["port"]}]
    admitted = peer["podSelector"]["matchLabels"].items()
    for name, pod_template in pod_templates().items():
        assert (admitted <= pod_template.get("metadata", {}).get("labels", {}).items()) == (name == "head")


def test_the_readme_names_every_file():
    readme = (DEPLOY / "README.md").read_text()
    assert MANIFESTS and all(f"kuberay/{path.name}" in readme for path in MANIFESTS)
