/* show: records as JSON. */
#include <getopt.h>
#include <string.h>
#include "tools/cr-image/cr_image.h"
#include "wire/page_digest.h"

static int usage(FILE *f)
{
	fputs("usage: cr-image show [--all] DIR [manifest | tree | index-N]\n\n"
	      "Prints a record as JSON, or manifest and tree. Fields that have their default value "
	      "(0, false,\nempty) are left out. Numbers above 2^53, which JSON readers round, are "
	      "strings \"0x…\"; bytes are\nhexadecimal digits; indices count from 0.\n\n"
	      "  --all   all fields, columns as they are stored, and the hashes of an index\n",
	      f);
	return f == stdout ? ST_OK : ST_USAGE;
}

struct show {
	struct image *im;
	bool all;
};

static int get_manifest(const struct show *s, json_t **ret, struct cr_err *err)
{
	return json_of_manifest(s->im, s->all, ret, err);
}

static int get_tree(const struct show *s, json_t **ret, struct cr_err *err)
{
	int r = s->im->tree_file_bytes ? image_load_tree(s->im, err)
				       : cr_err_set(err, CR_ERR_INPUT, ENODATA, "no tree yet");

	if (!r)
		r = json_of_tree(s->im, s->all, ret, err);
	if (!r && !s->all)
		rows_of_columns(*ret);
	return r;
}

/* ---- an index ---- */

static json_t *runs(const uint64_t bits[8])
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++) {
		unsigned int first = i;

		while (i < IMAGE_CHUNK_PAGES && image_bit(bits, i))
			i++;
		if (i > first)
			json_array_append_new(list,
					      json_pack("[i, i]", (int)first, (int)(i - first)));
	}
	return list;
}

static json_t *hashes(const struct image_chunk *c)
{
	json_t *list = json_array();
	char hex[IMAGE_DIGEST_HEX];

	for (unsigned int i = 0; i < IMAGE_CHUNK_PAGES; i++)
		if (image_bit(c->data, i))
			json_array_append_new(list,
					      json_string(image_digest_format(c->hash[i], hex)));
	return list;
}

static json_t *json_of_chunk(const struct image_chunk *c, bool all)
{
	char va[24];

	snprintf(va, sizeof(va), "%#llx", (unsigned long long)c->va);
	json_t *o = json_pack("{s:s, s:I, s:o, s:o}", "va", va, "slot", (json_int_t)c->slot,
			      "data_pages", runs(c->data), "zero_pages", runs(c->zero));
	if (o && all)
		json_object_set_new(o, "hashes", hashes(c));
	return o;
}

static int get_index(const struct show *s, const char *record, json_t **ret, struct cr_err *err)
{
	char *end;
	unsigned long n = strtoul(record + strlen("index-"), &end, 10);
	struct image_target *it = *end || n > UINT32_MAX ? NULL : image_target(s->im, (uint32_t)n);

	if (!it)
		return cr_err_set(err, CR_ERR_INPUT, ENOENT, "the manifest knows no %s", record);
	int r = image_load_target(s->im, it, err);
	if (r)
		return r;
	json_t *chunks = json_array();
	vec_foreach (c, &it->pages.chunks)
		json_array_append_new(chunks, json_of_chunk(*c, s->all));
	*ret = json_pack("{s:I, s:I, s:o}", "slots", (json_int_t)it->pages.slots, "target",
			 (json_int_t)n, "chunks", chunks);
	return *ret ? 0 : cr_err_oom(err);
}

/* ---- */

static int get_both(const struct show *s, json_t **ret, struct cr_err *err)
{
	json_t *m, *t;
	int r = get_manifest(s, &m, err);

	if (r)
		return r;
	*ret = json_pack("{s:o}", "manifest", m);
	if (!s->im->tree_file_bytes || s->im->state == IMAGE_RECEIVING)
		return 0;
	r = get_tree(s, &t, err);
	if (r)
		json_decref(*ret);
	else
		json_object_set_new(*ret, "tree", t);
	return r;
}

static int get(const struct show *s, const char *record, json_t **ret, struct cr_err *err)
{
	if (!record)
		return get_both(s, ret, err);
	if (!strcmp(record, "manifest"))
		return get_manifest(s, ret, err);
	if (!strcmp(record, "tree"))
		return get_tree(s, ret, err);
	if (!strncmp(record, "index-", 6))
		return get_index(s, record, ret, err);
	return cr_err_set(err, CR_ERR_INPUT, EINVAL,
			  "no record '%s': there are manifest, tree and index-N", record);
}

int verb_show(int argc, char **argv)
{
	static const struct option options[] = {
	    {"all", no_argument, NULL, 'a'}, {"help", no_argument, NULL, 'h'}, {0}};
	_cleanup_(image_freep) struct image *im = NULL;
	_cleanup_(json_freep) json_t *j = NULL;
	struct cr_err err = {0};
	struct show s = {0};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c != 'a')
			return usage(c == 'h' ? stdout : stderr);
		s.all = true;
	}
	if (argc - optind < 1 || argc - optind > 2)
		return usage(stderr);
	if (image_open_parts(&im, argv[optind], &err))
		return trouble(&err);
	s.im = im;
	if (get(&s, argv[optind + 1], &j, &err)) {
		j = NULL;
		cr_err_ctx(&err, "image %s", argv[optind]);
		return trouble(&err);
	}
	if (json_dumpf(j, stdout, JSON_INDENT(2)) || putchar('\n') < 0 || fflush(stdout))
		return ST_TROUBLE;
	return ST_OK;
}
