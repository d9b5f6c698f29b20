"""Payloads for vector databases: the clients take them, and embedded databases rank as HybridSearcher does.

The same hybrid query is run by Qdrant's local mode and by Milvus Lite, over candidates wide enough that nothing but
the scores decides.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bgem3.scoring import Embeddings, HybridSearcher
from bgem3.scoring.hybrid import DEFAULT_WEIGHTS
from tests.scoring.corpus import make_embeddings

for client in ("milvus_lite", "pymilvus", "qdrant_client", "vespa"):
    pytest.importorskip(client, reason="`make test-integrations` installs the clients of vector databases")

from pymilvus import AnnSearchRequest, DataType, MilvusClient, WeightedRanker  # noqa: E402
from pymilvus.client.prepare import Prepare  # noqa: E402
from qdrant_client import QdrantClient, models  # noqa: E402
from vespa.application import Vespa  # noqa: E402


def with_tokens(embeddings: Embeddings) -> Embeddings:
    """Leave out texts without lexical weights, which Milvus Lite refuses."""
    return embeddings[np.diff(embeddings.sparse.indptr) > 0]


PASSAGES, QUERIES = with_tokens(make_embeddings(1, 60)), with_tokens(make_embeddings(2, 20))
pytestmark = pytest.mark.integrations
N_DIMS = PASSAGES.dense.shape[1]


def expected_ranking(weights: tuple[float, float, float], ids: list[Any]) -> list[list[Any]]:
    found = HybridSearcher.build(PASSAGES, ids).search(QUERIES, 10, weights, candidates=len(PASSAGES))
    return found.ids.tolist()  # type: ignore[no-any-return]


def test_qdrants_local_mode_ranks_by_the_three_scores_as_the_searcher_does() -> None:
    client = QdrantClient(":memory:")
    client.create_collection(
        "passages",
        vectors_config={
            "dense": models.VectorParams(size=N_DIMS, distance=models.Distance.DOT),
            "multivector": models.VectorParams(
                size=N_DIMS,
                distance=models.Distance.DOT,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            ),
        },
        sparse_vectors_config={"sparse": models.SparseVectorParams()},
    )
    ids = [100 + i for i in range(len(PASSAGES))]
    client.upsert("passages", [models.PointStruct(**point) for point in PASSAGES.to_qdrant(ids)])
    found = []
    for point in QUERIES.to_qdrant():
        vectors = models.PointStruct(**point).vector
        assert isinstance(vectors, dict)
        names = ("dense", "sparse", "multivector")
        w_dense, w_sparse, w_multivector = DEFAULT_WEIGHTS
        scale = w_dense, w_sparse, w_multivector / len(point["vector"]["multivector"])
        terms: list[models.Expression] = [
            models.MultExpression(mult=[weight, f"$score[{place}]"]) for place, weight in enumerate(scale)
        ]
        results = client.query_points(
            "passages",
            prefetch=[models.Prefetch(query=vectors[name], using=name, limit=len(PASSAGES)) for name in names],
            query=models.FormulaQuery(
                formula=models.SumExpression(sum=terms), defaults={f"$score[{place}]": 0.0 for place in range(3)}
            ),
            limit=10,
        )
        found.append([result.id for result in results.points])
    client.close()
    assert found == expected_ranking(DEFAULT_WEIGHTS, ids)


def test_milvus_lite_ranks_by_dense_and_lexical_score_as_the_searcher_does(tmp_path: Path) -> None:
    client = MilvusClient(str(tmp_path / "milvus.db"))
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=16)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=N_DIMS)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    index.add_index("dense", index_type="FLAT", metric_type="IP")
    index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection("passages", schema=schema, index_params=index)
    ids = [f"passage {i}" for i in range(len(PASSAGES))]
    rows = PASSAGES.to_milvus(ids)
    client.insert("passages", [{name: row[name] for name in ("id", "dense", "sparse")} for row in rows])
    found = []
    for row in QUERIES.to_milvus():
        requests = [
            AnnSearchRequest([row[name]], name, {"metric_type": "IP"}, limit=len(PASSAGES))
            for name in ("dense", "sparse")
        ]
        (hits,) = client.hybrid_search("passages", requests, WeightedRanker(0.6, 0.4, norm_score=False), limit=10)
        found.append([hit["id"] for hit in hits])
    client.close()
    assert found == expected_ranking((0.6, 0.4, 0.0), ids)


def test_pymilvus_packs_multivectors_as_an_array_of_structs() -> None:
    """Milvus Lite has no index for such a field, so what the client would send to a server is looked at."""
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=N_DIMS)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    struct = MilvusClient.create_struct_field_schema()
    struct.add_field("vector", DataType.FLOAT_VECTOR, dim=N_DIMS)
    schema.add_field("multivector", DataType.ARRAY, element_type=DataType.STRUCT, struct_schema=struct, max_capacity=9)
    described = schema.to_dict()
    rows = PASSAGES.to_milvus()
    request = Prepare.row_insert_param("passages", rows, "", described["fields"], described["struct_fields"])
    fields = {field.field_name: field for field in request.fields_data}
    packed = fields["multivector"].struct_arrays.fields[0].vectors.vector_array.data
    assert len(packed) == len(PASSAGES)
    for found, expected in zip(packed, PASSAGES.multivector, strict=True):
        np.testing.assert_array_equal(np.float32(found.float_vector.data), expected.ravel())


@pytest.fixture
def vespa_requests() -> Iterator[tuple[Vespa, dict[str, Any]]]:
    """A Vespa client, and the documents it sends to a server that takes them all."""
    received: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received[self.path] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Vespa(url="http://127.0.0.1", port=server.server_port), received
    server.shutdown()
    thread.join()
    server.server_close()


def test_pyvespa_feeds_documents_of_tensors(vespa_requests: tuple[Vespa, dict[str, Any]]) -> None:
    """Vespa's JSON: indexed tensors as values, mapped ones as cells, mixed ones as blocks."""
    vespa, received = vespa_requests
    vespa.feed_iterable(PASSAGES[:5].to_vespa(), schema="passage", compress=False, max_workers=1)
    assert len(received) == 5
    for i in range(5):
        fields = received[f"/document/v1/passage/passage/docid/{i}"]["fields"]
        np.testing.assert_array_equal(np.float32(fields["dense"]["values"]), PASSAGES.dense[i])
        lexical = {token: float(weight) for token, weight in PASSAGES.lexical_weights[i].items()}
        assert fields["sparse"]["cells"] == lexical
        blocks = fields["multivector"]["blocks"]
        assert list(blocks) == [str(place) for place in range(len(PASSAGES.multivector[i]))]
        np.testing.assert_array_equal(np.array(list(blocks.values()), np.float32), PASSAGES.multivector[i])
