#!/usr/bin/perl
# The documents tell the truth about what can be checked by a program: what the README tells a reader to
# run exists, links lead somewhere, names of files and functions are those of the code, golden vectors are
# those that the unit tests check.
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use Test::More;

my $tree = abs_path(dirname(abs_path(__FILE__)) . '/..');
chdir $tree or die "$tree: $!\n";
my @docs = qw(README.md src/ARCHITECTURE.md proto/PROTOCOL.md proto/PAGES.md proto/IMAGES.md);

sub slurp {
	my ($path) = @_;
	open my $f, '<', $path or die "$path: $!\n";
	local $/;
	return scalar <$f>;
}

# nothing_wrong DESCRIPTION, WRONG…: passes if there is nothing.
sub nothing_wrong {
	my ($what, @wrong) = @_;
	ok(!@wrong, $what) or diag(join "\n", @wrong);
}

sub uniq {
	my %seen;
	return grep { !$seen{$_}++ } @_;
}

my %text = map { $_ => slurp($_) } @docs;
my $tracked = qx(git -c safe.directory='*' ls-files 2>/dev/null);
my @tracked = $? == 0 && $tracked ? split /\n/, $tracked : split /\n/,
	qx(find . -type f -not -path './build*' -not -path './.git*' -printf '%P\\n');
my %code = map { $_ => slurp($_) } grep { /\.[chS]$/ && m{^(src|pageserver|migrate|pie)/} && -f } @tracked;
my $all_code = join "\n", values %code;

# ---- what a reader is told to run ----

my $makefile = slurp('Makefile') . slurp('tests/tests.mk');
my @targets = uniq(map { $text{$_} =~ /(?:`|sudo )make ([a-z][a-z0-9-]*)/g } @docs);
ok(@targets > 1, 'the documents name targets of make');
nothing_wrong('all of them exist', grep { $makefile !~ /^(?:[\w-]+ )*\Q$_\E(?: [\w-]+)*:/m } @targets);

my %help = (
	'cr-migrate' => scalar qx(build/cr-migrate --help 2>&1),
	'cr-agent' => join('', map { scalar qx(build/cr-agent $_ --help 2>&1) } qw(serve pre-dump dump restore)),
	'page-server' => scalar qx(build/page-server --help 2>&1),
	'cr-image' => join("\n", map { scalar qx(build/cr-image $_ --help 2>&1) } qw(ls show verify diff mem tree)),
	'testbed' => scalar qx(tools/testbed --help 2>&1),
);
for my $program (sort keys %help) {
	like($help{$program}, qr/^usage: /, "$program --help");
}
my $help = join "\n", values %help;
nothing_wrong('every option in the README is one of a program',
	map { "README.md: $_" } grep { $help !~ /(?<![\w-])\Q$_\E(?![\w-])/ }
	uniq($text{'README.md'} =~ /(?<![\w-])(--[a-z][a-z-]+)/g));
nothing_wrong('every command of testbed in the README is one',
	grep { $help{testbed} !~ /^  (?:\[--\w+\] )?\Q$_\E\b/m }
	uniq($text{'README.md'} =~ /tools\/testbed (?:--\w+ \w+ )?([a-z][a-z-]+)\b/g));

# ---- statuses and JSON ----

my ($exit_help) = $help{'cr-migrate'} =~ /^(Exit:.*)/ms;
my @statuses = $text{'README.md'} =~ /^\| (\d) \| /mg;
is("@statuses", '0 1 2 3 4 5', 'the README lists the exit statuses');
nothing_wrong('as --help does', grep { $exit_help !~ /\b$_ / } @statuses);
my $json = slurp('migrate/report_json.c');
my ($example) = $text{'README.md'} =~ /```json\n(.*?)```/s;
nothing_wrong('keys of the JSON example are those that are printed',
	grep { $json !~ /"\Q$_\E"/ } uniq($example =~ /"(\w+)":/g));

# ---- links and names ----

sub anchors {
	my ($path) = @_;
	my @heads = map { lc } slurp($path) =~ /^#+ (.*)$/mg;
	for (@heads) {
		s/[^\w\s-]//g;
		s/\s/-/g;
	}
	return @heads;
}

my @broken;
for my $doc (@docs) {
	while ($text{$doc} =~ /\]\(([^)\s]+)\)/g) {
		my $link = $1;
		next if $link =~ /^https?:/;
		my ($file, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
		my $path = $file eq '' ? $doc : dirname($doc) . "/$file";
		if (!-e $path) {
			push @broken, "$doc: $link: no such file";
		} elsif (defined $anchor && !grep { $_ eq $anchor } anchors($path)) {
			push @broken, "$doc: $link: no such heading";
		}
	}
}
nothing_wrong('every link leads somewhere', @broken);

my @lost;
for my $doc (@docs) {
	for my $path (grep { !/NAME/ } uniq($text{$doc} =~ /`([\w.-]+\/[\w.\/*-]+\.(?:c|h|S|t|proto|md)|[a-z]+\/)`/g)) {
		my @found = map { glob "$_$path" } '', 'src/', dirname($doc) . '/';
		push @lost, "$doc: $path" unless grep { -e } @found;
	}
	for my $name (uniq($text{$doc} =~ /`([a-z]\w*_\w+|plan|commit)\(\)`/g)) {
		push @lost, "$doc: $name()" unless $all_code =~ /\b\Q$name\E\(/;
	}
}
my ($facts) = $text{'src/ARCHITECTURE.md'} =~ /## Kernel facts learned(.*?)\n## /s;
for my $name (uniq($facts =~ /\| .*?\| `([\w.]+)`/g)) {
	push @lost, "src/ARCHITECTURE.md: $name"
		unless $all_code =~ /\b\Q$name\E\(/ || grep { m{/\Q$name\E$} } keys %code;
}
nothing_wrong('files and functions that are named exist', @lost);

my @points = sort(uniq($all_code =~ /"((?:source|dest)-[a-z]+)"/g));
my ($sentence) = $text{'src/ARCHITECTURE.md'} =~ /(Fault points .*?)\n\n/s;
is_deeply([sort(uniq($sentence =~ /`((?:source|dest)-[a-z]+)`/g))], \@points, 'all fault points are named');

my %layer = map { $_ => 1 } $text{'src/ARCHITECTURE.md'} =~ /`([a-z]+)\/`/g;
nothing_wrong('every room is in the table of rooms',
	grep { !$layer{$_} } uniq(map { m{^(?:src/)?([a-z]+)/} } keys %code));

# ---- golden vectors ----

sub joined_strings {
	my ($path) = @_;
	my $source = slurp($path);
	$source =~ s/"\s*"//g;
	return $source;
}

my $messages = joined_strings('tests/unit/test_msg.c');
my @vectors = $text{'proto/PROTOCOL.md'} =~ /\| `([0-9a-f]+)` \|/g;
ok(@vectors > 3, 'PROTOCOL.md has golden vectors of messages');
nothing_wrong('they are those of the unit test', grep { $messages !~ /"$_"/ } @vectors);
is(scalar(@vectors), scalar(() = $messages =~ /\{MSG_\w+, "[0-9a-f]+"\}/g), 'and all of them');
my ($tree_vector) = $text{'proto/PROTOCOL.md'} =~ /```\n(08[0-9a-f()\n]+)```/;
$tree_vector =~ s/\n//g;
like(joined_strings('tests/unit/test_tree_codec.c'), qr/"\Q$tree_vector\E"/, 'that of the tree too');
my $pages = slurp('tests/unit/test_page_stream.c');
nothing_wrong('those of page digests too', grep { $pages !~ /\Q$_\E/ }
	$text{'proto/PAGES.md'} =~ /\b(0x[0-9a-f]{16})\b(?=[ ,|])(?<!0102030405060708)/g);

# ---- what has no place here ----

my @strays;
for my $file (grep { -f && -T && $_ ne 'tests/docs.t' } @tracked) {
	my $body = slurp($file);
	push @strays, "$file: $1" if $body =~ m{((?<![\w.])/(?:home|Users)/\w+)};
	push @strays, "$file: $tree" if $tree =~ m{^/.+/} && $body =~ /\Q$tree\E/;
}
nothing_wrong('no path of a machine that this was built on', @strays);
done_testing();
