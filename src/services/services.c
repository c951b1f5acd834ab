#include "services.h"

#include <stddef.h>

const struct service *const services_builtin[] = {
	&admin_service, &echo_service, &discard_service, &chargen_service, NULL,
};
