#include "services.h"

#include <stddef.h>

const struct service *const services_builtin[] = {
	&echo_service,
	&discard_service,
	&chargen_service,
	NULL,
};
