/*
 * config_apply: what was written becomes values: each text that of its keyword, what is missing its
 * default. What the values mean together is config_check's business.
 */
#ifndef PENSTOCK_CONFIG_APPLY_H
#define PENSTOCK_CONFIG_APPLY_H

#include "config_check.h"
#include "config_parse.h"

#define CONFIG_FILES_MOST 1000

/* One configuration on its way from its files to a generation. */
struct config_load {
	struct config_report *report;
	struct config_document documents[CONFIG_FILES_MOST];
	size_t document_count;
	struct config_budget budget; /* for further files */
	struct generation *generation;

	/* Where the generation's values were written, owned: */
	struct config_places listens, connects, binds, weights;
	struct config_places accept_filters, connect_filters;
	struct config_places limit_rows, limit_uses;
};

/* Fills the generation and the places from the documents. */
void config_apply(struct config_load *load);

#endif
