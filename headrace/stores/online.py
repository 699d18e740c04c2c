from feast.infra.online_stores.online_store import OnlineStore
from feast.repo_config import FeastConfigBaseModel
class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):
    type: str = "headrace.stores.online.PackedRedisOnlineStore"
class PackedRedisOnlineStore(OnlineStore):
    def online_write_batch(self, config, table, data, progress): ...
    def online_read(self, config, table, entity_keys, requested_features=None): ...
    def update(self, config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial):
        print(tables_to_keep, partial)
    def teardown(self, config, tables, entities): ...
