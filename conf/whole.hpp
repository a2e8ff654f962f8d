#pragma once
// check() with places, for the loader. Internal to this room.

#include <string>
#include <vector>

#include "conf/load.hpp"

namespace latchkey::conf {

struct place {
    unsigned line = 0;
    unsigned column = 0;
};

// Where things stand in the file; `apis` is shorter than settings.apis where that is not known.
struct places {
    place listen;
    place tls;
    place tls_listen;
    place admin_listen;
    place limits;
    place memory;
    place data_dir;
    std::vector<place> apis;
};

std::vector<finding> check_whole(settings const&, std::string const& file, places const&);

}  // namespace latchkey::conf
