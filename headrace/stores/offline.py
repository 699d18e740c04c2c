from feast.infra.offline_stores.offline_store import OfflineStore
from feast.repo_config import FeastConfigBaseModel
class PolarsOfflineStoreConfig(FeastConfigBaseModel):
    type: str = "headrace.stores.offline.PolarsOfflineStore"
class PolarsOfflineStore(OfflineStore):
    pass
