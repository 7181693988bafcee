"""A class at the module's top, options set later, half a CPU, and few that may wait: the others get a 503."""

from ray import serve
from ray.serve import Application

from chat_completions import create_app


class Endpoint:
    def check_health(self):
        pass


def build(load, *, replicas: int = 2, max_ongoing_requests: int = 16) -> Application:
    app = create_app(load, model="tiny-qwen")

    @app.get("/health")
    def health():
        return {"status": "ok"}

    deployment = serve.deployment(serve.ingress(app)(Endpoint)).options(
        name="endpoint",
        num_replicas=replicas,
        max_ongoing_requests=max_ongoing_requests,
        max_queued_requests=2,
        ray_actor_options={"num_cpus": 0.5},
    )
    return deployment.bind()
