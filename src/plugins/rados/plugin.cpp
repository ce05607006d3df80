#include "sources/plugin.h"

#include "plugins/rados/source.h"

extern "C" __attribute__((visibility("default"))) const uffda::sources::SourcePlugin uffda_source_plugin{
    .build = UFFDA_PLUGIN_BUILD, .open = uffda::sources::rados::open, .create = uffda::sources::rados::create};
