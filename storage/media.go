package storage

import "chancery/storage/sql"

// Media is a row of media: what we know of a file.
type Media struct {
	Origin        string // server name of its mxc URI
	ID            string
	Hash          string // of the content; "": reserved, not uploaded yet
	Size          int64
	Type          string
	Name          string
	User          string // who uploaded it; "": fetched from its server
	Created       int64  // milliseconds, as all times here
	Expires       int64  // when a reserved ID is given up; 0: it is filled
	LastAccess    int64
	Public        bool // served without authentication too
	QuarantinedBy string
}

const mediaColumns = `origin, media_id, hash, size, type, name, user_id, created, expires, last_access, public, quarantined_by`

func scanMedia(r interface{ Scan(...any) error }) (Media, error) {
	var v Media
	err := r.Scan(&v.Origin, &v.ID, &v.Hash, &v.Size, &v.Type, &v.Name, &v.User, &v.Created, &v.Expires, &v.LastAccess,
		&v.Public, &v.QuarantinedBy)
	v.Type, v.Name = sql.Untext(v.Type), sql.Untext(v.Name)
	v.User, v.QuarantinedBy = sql.Untext(v.User), sql.Untext(v.QuarantinedBy)
	return v, err
}

// Media finds a file. Origin and ID are checked by the caller: neither needs escaping.
func (tx Tx) Media(origin, mediaID string) (v Media, ok bool, err error) {
	v, err = scanMedia(tx.QueryRow(`SELECT `+mediaColumns+` FROM media WHERE origin = $1 AND media_id = $2`, origin, mediaID))
	return found(v, err)
}

// InsertMedia keeps a file's row; ok is false when there is one of that ID.
func (tx Tx) InsertMedia(v Media) (ok bool, err error) {
	n, err := tx.ExecRows(`INSERT INTO media (`+mediaColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
		ON CONFLICT (origin, media_id) DO NOTHING`,
		v.Origin, v.ID, v.Hash, v.Size, sql.Text(v.Type), sql.Text(v.Name), sql.Text(v.User), v.Created, v.Expires, v.LastAccess,
		v.Public, sql.Text(v.QuarantinedBy))
	return n > 0, err
}

// FillMedia gives a reserved ID its content; ok is false when it has one, or has expired at now.
func (tx Tx) FillMedia(v Media, now int64) (ok bool, err error) {
	n, err := tx.ExecRows(`UPDATE media SET hash = $3, size = $4, type = $5, name = $6, created = $7, last_access = $7, expires = 0
		WHERE origin = $1 AND media_id = $2 AND hash = '' AND expires > $7`,
		v.Origin, v.ID, v.Hash, v.Size, sql.Text(v.Type), sql.Text(v.Name), now)
	return n > 0, err
}

// ReplaceMedia gives a file of another server, whose content was lost, the one that was fetched anew.
func (tx Tx) ReplaceMedia(v Media) {
	tx.Exec(`UPDATE media SET hash = $3, size = $4, type = $5, name = $6, last_access = $7
		WHERE origin = $1 AND media_id = $2 AND user_id = ''`,
		v.Origin, v.ID, v.Hash, v.Size, sql.Text(v.Type), sql.Text(v.Name), v.LastAccess)
}

// ReservedMedia counts the IDs that a user has reserved, not filled and not let expire at now.
func (tx Tx) ReservedMedia(user string, now int64) (n int64, err error) {
	err = tx.QueryRow(`SELECT count(*) FROM media WHERE user_id = $1 AND expires > $2`, sql.Text(user), now).Scan(&n)
	return n, err
}

// MediaUsage tells how many files a user has uploaded, and their bytes.
func (tx Tx) MediaUsage(user string) (files, bytes int64, err error) {
	err = tx.QueryRow(`SELECT count(*), coalesce(sum(size), 0) FROM media WHERE user_id = $1 AND hash <> ''`, sql.Text(user)).
		Scan(&files, &bytes)
	return files, bytes, err
}

// SeeMedia notes that somebody asked for a file.
func (tx Tx) SeeMedia(origin, mediaID string, now int64) {
	tx.Exec(`UPDATE media SET last_access = $3 WHERE origin = $1 AND media_id = $2 AND last_access < $3`, origin, mediaID, now)
}

// DropExpiredMedia gives up the IDs that were reserved and not filled before now.
func (tx Tx) DropExpiredMedia(now int64) {
	tx.Exec(`DELETE FROM media WHERE expires > 0 AND expires <= $1 AND hash = ''`, now)
}

// DropForgottenMedia forgets some files of other servers that nobody has asked for since before,
// and gives their hashes. What was withdrawn stays known: else it would be fetched again.
func (tx Tx) DropForgottenMedia(before int64, limit int) ([]string, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (string, error) {
		var hash string
		err := r.Scan(&hash)
		return hash, err
	}, `DELETE FROM media WHERE (origin, media_id) IN (
			SELECT origin, media_id FROM media WHERE last_access < $1 AND user_id = '' AND quarantined_by = '' AND hash <> ''
			ORDER BY last_access LIMIT $2)
		RETURNING hash`, before, limit)
}

// Thumbnail is a row of media_thumbnails.
type Thumbnail struct {
	Source        string // hash of the content it was made of
	Width, Height int64  // what was asked for, not what it has
	Method        string // "crop" or "scale"
	Hash          string
	Size          int64
	Type          string
}

// Thumbnail finds a thumbnail that was made before.
func (tx Tx) Thumbnail(source string, width, height int64, method string) (v Thumbnail, ok bool, err error) {
	v = Thumbnail{Source: source, Width: width, Height: height, Method: method}
	err = tx.QueryRow(`SELECT hash, size, type FROM media_thumbnails WHERE source = $1 AND width = $2 AND height = $3 AND method = $4`,
		source, width, height, method).Scan(&v.Hash, &v.Size, &v.Type)
	return found(v, err)
}

// CountThumbnails tells how many thumbnails are kept of a content.
func (tx Tx) CountThumbnails(source string) (n int64, err error) {
	err = tx.QueryRow(`SELECT count(*) FROM media_thumbnails WHERE source = $1`, source).Scan(&n)
	return n, err
}

// SetThumbnail keeps a thumbnail.
func (tx Tx) SetThumbnail(v Thumbnail) {
	tx.Exec(`INSERT INTO media_thumbnails (source, width, height, method, hash, size, type) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (source, width, height, method) DO UPDATE SET hash = excluded.hash, size = excluded.size, type = excluded.type`,
		v.Source, v.Width, v.Height, v.Method, v.Hash, v.Size, v.Type)
}

// DropThumbnails forgets the thumbnails of contents that no file has any more, and gives their hashes.
func (tx Tx) DropThumbnails(sources []string) ([]string, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (string, error) {
		var hash string
		err := r.Scan(&hash)
		return hash, err
	}, `DELETE FROM media_thumbnails WHERE source = ANY($1) AND NOT EXISTS (SELECT 1 FROM media m WHERE m.hash = media_thumbnails.source)
		RETURNING hash`, sources)
}

// ContentInUse says whether a file or a thumbnail has the content.
func (tx Tx) ContentInUse(hash string) (used bool, err error) {
	var n int64
	err = tx.QueryRow(`SELECT (SELECT count(*) FROM media WHERE hash = $1) + (SELECT count(*) FROM media_thumbnails WHERE hash = $1)`, hash).
		Scan(&n)
	return n > 0, err
}
